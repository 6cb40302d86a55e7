"""Editing a network, so that it can be taken back: how a module is put after a sub-module, and in its place."""

from typing import Protocol

from torch import nn

from .followed import SITE, Followed, places, put, wrappers_of
from .fused import Fused, Handover, Offered
from .merged import Merged, Spot, beneath, close_scopes, is_intact, is_owner, open_scope
from .probe import device_and_dtype
from .tokens import View

REPLACED = "_replaced"  # attribute of a new module: the class that it replaced


class Edit(Protocol):
    """One edit of a network, made when the object is."""

    path: str

    def intact(self) -> bool:
        """Whether the place is still as the edit left it."""

    def revert(self) -> None:
        """Take the edit back."""


class Insertion:
    """`child` called after `site`, wherever the network held `site`.

    Args:
        model: the network.
        path: the site's name.
        site: what the child follows.
        child: the new module.
        name: its name at the site, as from `free_name`.
        copies: whether its output is copied before the network goes on with it; see `Followed`.
        view: how the child sees the site's output.
    """

    def __init__(self, model: nn.Module, path: str, site: nn.Module, child: nn.Module, name: str, copies: bool,
                 view: View | None):
        self.path, self.site, self.child, self.model = path, site, child, model
        held = places(model, site)
        self.held = len(held)
        self.wrapper = Followed(site, child, name, copies, view)
        put(held, self.wrapper)

    def intact(self) -> bool:
        return len(places(self.model, self.wrapper)) == self.held

    def revert(self) -> None:
        # What the wrapper holds now: something may have converted the site, or been inserted before.
        put(places(self.model, self.wrapper), self.wrapper.site)


class Fusion:
    """`child` called with the outputs of `site` and of other sub-modules, whose output the site's is then.

    Args:
        model: the network.
        path, site: as for `Insertion`.
        skips: the names of the others, the sub-modules, and whether a copy of their output is handed over.
        child, name, copies: as for `Insertion`.
    """

    def __init__(self, model: nn.Module, path: str, site: nn.Module, skips: dict[str, tuple[nn.Module, bool]],
                 child: nn.Module, name: str, copies: bool):
        self.path, self.model, self.handover = path, model, Handover()
        wrappers = [(skip, Offered(skip, key, self.handover, copied)) for key, (skip, copied) in skips.items()]
        wrappers.append((site, Fused(site, child, name, copies, self.handover, tuple(skips))))
        self.held = []
        for old, wrapper in wrappers:
            held = places(model, old)
            put(held, wrapper)
            self.held.append((wrapper, len(held)))
        self.handover.attach(model)

    def intact(self) -> bool:
        return all(len(places(self.model, wrapper)) == held for wrapper, held in self.held)

    def revert(self) -> None:
        for wrapper, _ in self.held:
            put(places(self.model, wrapper), wrapper.site)
        self.handover.detach(self.model)


class Merging:
    """`child` called in the place of a merge that `owner` writes.

    Args:
        model: the network.
        path: the merge's name.
        owner: the sub-module, or the network, that writes it.
        place: the sub-module that is called last before it, or the owner.
        child: the new module.
        name: its name at the place.
        spot: which merge that is.
    """

    def __init__(self, model: nn.Module, path: str, owner: nn.Module, place: nn.Module, child: nn.Module, name: str,
                 spot: Spot):
        self.path, self.model, self.owner = path, model, owner
        held = places(model, outermost(model, place))
        self.held = len(held)
        self.wrapper = Merged(outermost(model, place), child, name, open_scope(path, owner), spot)
        put(held, self.wrapper)

    def intact(self) -> bool:
        return is_intact(self.owner) and len(places(self.model, self.wrapper)) == self.held

    def revert(self) -> None:
        put(places(self.model, self.wrapper), self.wrapper.site)
        close_scopes(self.model)


class Replacement:
    """`new` wherever the network held `old`."""

    def __init__(self, model: nn.Module, path: str, old: nn.Module, new: nn.Module):
        self.path, self.old, self.new = path, old, new
        self.places = places(model, old)
        self.type = device_and_dtype(new)
        setattr(new, REPLACED, type(old).__name__)
        put(self.places, new)

    def intact(self) -> bool:
        held = all(parent._modules.get(name) is self.new for parent, name in self.places)
        return held and not self.new._forward_hooks

    def revert(self) -> None:
        here = device_and_dtype(self.new)
        if here != self.type:  # the network moved in between
            self.old.to(*here)
        self.old.train(self.new.training)
        put(self.places, self.old)
        delattr(self.new, REPLACED)


def check_calls(path: str, of_site: int, of_child: int) -> None:
    """A new module must be called as often as its site: once after each call, by the wrapper."""
    if of_child != of_site:
        raise ValueError(f"site {path!r} is called {of_site} times in a forward pass, but {of_child} times where the "
                         "network holds it as a sub-module: it is also held elsewhere, such as in a list or by a "
                         "function; name a module that holds it")


def outermost(model: nn.Module, place: nn.Module) -> nn.Module:
    """What a network holds where `place` is: itself, or what announces merges after it."""
    announcing = (module for module in model.modules() if isinstance(module, Merged))
    return next((module for module in announcing if beneath(module) is place), place)


def free_name(model: nn.Module, site: nn.Module, label: str) -> str:
    """`label`, with as many underscores as make it a name that the site, and what stands around it, does not have."""
    there = outermost(model, site)
    while label == SITE or hasattr(there, label):
        label += "_"
    return label


def check_replaceable(path: str, site: nn.Module) -> None:
    """A site must carry neither insertions nor hooks: they would be lost with it."""
    if any(is_owner(module) for module in site.modules()):
        raise ValueError(f"site {path!r} cannot be replaced: that would lose what stands for a merge in it; undo() "
                         "that first")
    if wrappers := wrappers_of(site):
        raise ValueError(f"site {path!r} cannot be replaced: that would lose {wrappers[0]._what}; undo() that first")
    if site._forward_hooks or site._forward_pre_hooks or site._backward_hooks:
        raise ValueError(f"site {path!r} carries hooks, which its replacement would lose; remove them first")


def revert_all(edits: list[Edit]) -> None:
    """Take edits back, the last one first; the list is empty then."""
    while edits:
        edits.pop().revert()

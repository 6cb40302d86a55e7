"""Editing a network, so that it can be taken back: how a module is put after a sub-module, and in its place.

How an insertion is made is known here and nowhere else.
"""

from typing import Any, Protocol

from torch import Tensor, nn

from ..tap import recording
from .probe import device_and_dtype, memory_format


class Edit(Protocol):
    """One edit of a network, made when the object is."""

    path: str

    def intact(self) -> bool:
        """Whether the place is still as the edit left it."""

    def revert(self) -> None:
        """Take the edit back."""


class Insertion:
    """`child` called after `site`: a child of it, run by a forward hook there.

    Args:
        path: the site's name.
        site: what the child follows.
        child: the new module.
        label: its name at the site, unless the site has an attribute of that name.
        copies: whether its output is copied before the network goes on with it; see `_CallChild`.
    """

    def __init__(self, path: str, site: nn.Module, child: nn.Module, label: str, copies: bool):
        name = label
        while hasattr(site, name):
            name += "_"
        self.path, self.site, self.child, self.name = path, site, child, name
        site.add_module(name, child)
        self.handle = site.register_forward_hook(_CallChild(name, copies))

    def intact(self) -> bool:
        return getattr(self.site, self.name, None) is self.child

    def revert(self) -> None:
        self.handle.remove()
        delattr(self.site, self.name)

    def check_calls(self, of_site: int, of_child: int) -> None:
        """The child must be called as often as the site: once after each call, by the hook."""
        if of_child != of_site:
            raise ValueError(f"site {self.path!r} calls its own children, the new one included; name one of those")


class _CallChild:
    """Forward hook that passes a site's output through one of its children.

    An object, not a closure: `deepcopy` copies it along with the site, and the child is looked up on whichever
    site calls it.
    """

    def __init__(self, name: str, copies: bool):
        self.name, self.copies = name, copies

    def __call__(self, site: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # In the memory format the network had here: later kernels, and with them the rounding, depend on it.
        y = getattr(site, self.name)(output).contiguous(memory_format=memory_format(output))
        # The network may go on to write into y (an in-place ReLU, `out += identity`), which must not reach a
        # tensor that the backward pass needs or that a trace shows.
        return y.clone() if self.copies or recording() else y


def inserted_after(site: nn.Module) -> list[nn.Module]:
    """The modules that insertions have put after a site."""
    return [getattr(site, hook.name) for hook in site._forward_hooks.values() if isinstance(hook, _CallChild)]


class Replacement:
    """`new` wherever the network held `old`."""

    def __init__(self, model: nn.Module, path: str, old: nn.Module, new: nn.Module):
        self.path, self.old, self.new = path, old, new
        self.places = [(parent, name) for parent in model.modules()
                       for name, m in parent._modules.items() if m is old]
        self.type = device_and_dtype(new)
        self._put(new)

    def intact(self) -> bool:
        held = all(parent._modules.get(name) is self.new for parent, name in self.places)
        return held and not self.new._forward_hooks

    def revert(self) -> None:
        here = device_and_dtype(self.new)
        if here != self.type:  # the network moved in between
            self.old.to(*here)
        self.old.train(self.new.training)
        self._put(self.old)

    def _put(self, module: nn.Module) -> None:
        for parent, name in self.places:
            setattr(parent, name, module)


def check_replaceable(path: str, site: nn.Module) -> None:
    """A site must carry no hooks, insertions among them: they would be lost with it."""
    if site._forward_hooks or site._forward_pre_hooks or site._backward_hooks:
        raise ValueError(f"site {path!r} carries hooks, which its replacement would lose; remove them first")


def revert_all(edits: list[Edit]) -> None:
    """Take edits back, the last one first; the list is empty then."""
    while edits:
        edits.pop().revert()

"""What an insertion is: a wrapper that stands where the network held the site, and calls the new module after it.

    Wrapper   passes for the site that it holds
    Followed  calls a new module after the site

What converts, fuses or quantises a network walks through its modules and puts others in their places. It finds the site
inside the wrapper, puts its own there, and the new module stays. A forward hook on the site would go with it.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from ..tap import recording
from .probe import memory_format
from .tokens import View

SITE = "site"  # the site's name in its wrapper

# What is read of a layer only to fold it into its neighbour, or its neighbour into it.
_STATISTICS = ("running_mean", "running_var")
_GEOMETRY = ("groups",)


class Wrapper(nn.Module):
    """Stands in the place of a site, which it holds, perhaps with a new module beside it: the child.

    To the network it is the site: what it does not have itself is read from the site and written to it, and
    `state_dict` has the site's keys, and below them the child's under its name. Names of modules and parameters
    hold one part more, "bn3.site.weight"; state dictionaries made of those load, too.

    What folds a norm into the convolution before it would lose the child. Therefore a norm's running statistics and the
    groups of a convolution are not to be read through the wrapper, nor parameters and buffers to be set; `.site` is
    the layer itself.

    Args:
        site: what it stands for.
        child: the new module, if there is one.
        name: the child's name, which must be no attribute of the site.
    """

    stands_for = SITE  # for traces, which name what is within by the names that it had

    # Of the class as well: names that it has are never the site's.
    _child = _prefix = ""

    def __init__(self, site: nn.Module, child: nn.Module | None = None, name: str = ""):
        super().__init__()
        self._child = name
        self.training = site.training
        self.add_module(SITE, site)
        if child is not None:
            self.add_module(name, child)
        self._register_state_dict_hook(_write_as_the_site)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_name_as_the_site)  # type: ignore[no-untyped-call]
        self.register_forward_pre_hook(_stand_in_the_way)

    def _held(self, name: str) -> nn.Module:
        """The module of that name, of which torch's types think that it may be None."""
        module = self._modules[name]
        assert module is not None
        return module

    @property
    def _inserted(self) -> nn.Module | None:
        """The module that was inserted, if there is one."""
        return self._modules.get(self._child)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            site = self.__dict__.get("_modules", {}).get(SITE)
            if site is None or name.startswith("__"):  # `__deepcopy__` of the site would copy the site alone
                raise
        if name in _STATISTICS and hasattr(site, name):
            raise AttributeError(self._refusal(f"{name} is not to be read: folding this norm into another layer"))
        if name in _GEOMETRY and isinstance(site, nn.modules.conv._ConvNd):
            raise AttributeError(self._refusal(f"{name} is not to be read: folding another layer into this one"))
        return getattr(site, name)

    def __setattr__(self, name: str, value: Any) -> None:
        site = self._modules.get(SITE)
        mine = name in self.__dict__ or name in self._modules or hasattr(type(self), name)
        if getattr(value, "__self__", self) is site and site is not None:  # `m.forward = m.forward_fused`
            setattr(site, name, value)
        elif mine or site is None or (name.startswith("_") and not hasattr(site, name)):
            super().__setattr__(name, value)
        elif name in site._parameters or name in site._buffers:
            if value is getattr(site, name):  # `norm.weight *= 2` has changed it in place, and sets what is there
                return
            raise AttributeError(self._refusal(f"{name} is not to be set: giving this layer another layer's work"))
        else:
            setattr(site, name, value)

    def __getitem__(self, key: Any) -> Any:
        site: Any = self._held(SITE)
        return site[key]

    @property
    def _innermost(self) -> nn.Module:
        """The site itself, where something was inserted after it several times."""
        return wrappers_of(self)[-1].site

    def _fqn_modifiers(self) -> dict[str, str]:
        """For torch.distributed.checkpoint, which walks along the keys of `state_dict`: these go on from the site."""
        site = self._innermost
        names = [*site._parameters, *site._buffers, *site._modules]
        return dict.fromkeys(names, "_innermost")

    def _refusal(self, what: str) -> str:
        kind = type(self._modules[SITE]).__name__
        return (f"{what} would lose or misplace {self._what}. Leave this layer out, or take that out first; the {kind} "
                f"itself is `.{SITE}`")

    @property
    def _what(self) -> str:
        """In words, what stands here besides the site."""
        return f"the {type(self._inserted).__name__} inserted after it"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        inner = prefix + SITE + "."
        site = self._held(SITE)
        kept = [f"{prefix}{self._child}."] if self._child else []
        if isinstance(site, Wrapper) or SITE not in site._modules:  # then keys with `.site.` can only be ours
            kept.append(inner)
        for key in [key for key in state_dict if key.startswith(prefix)]:
            if not key.startswith(tuple(kept)):
                state_dict[inner + key[len(prefix):]] = state_dict.pop(key)
        self._prefix = prefix
        super()._load_from_state_dict(state_dict, prefix, *args)


class Followed(Wrapper):
    """y = child(site(x)), in the place of the site.

    Args:
        site, child, name: as for `Wrapper`.
        copies: whether the output is copied before the network goes on with it, because it may write into it
            while the child's backward pass needs it.
        view: how the child sees the site's output; None where it takes it as it is.
    """

    _copies = False
    _view: View | None = None

    def __init__(self, site: nn.Module, child: nn.Module, name: str, copies: bool, view: View | None = None):
        super().__init__(site, child, name)
        self._copies, self._view = copies, view

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self._held(SITE)(*args, **kwargs)
        y = self._after(output)
        if not isinstance(output, Proxy):
            # In the memory format the network had here: later kernels, and with them the rounding, depend on it.
            y = y.contiguous(memory_format=memory_format(output))
        # The network may go on to write into y (an in-place ReLU, `out += identity`), which must not reach a
        # tensor that the backward pass needs or that a trace shows.
        return y.clone() if self._copies or recording() else y

    def _after(self, output: Tensor) -> Tensor:
        child = self._held(self._child)
        return child(output) if self._view is None else self._view.leave(child(self._view.enter(output)), output)


# Functions of the module, not closures: deepcopy and pickle take them along.

def _write_as_the_site(wrapper: Wrapper, state: dict[str, Any], prefix: str, _: Any) -> None:
    inner = prefix + SITE + "."
    for key in [key for key in state if key.startswith(prefix)]:  # all of them again: they keep their order
        value = state.pop(key)
        state[prefix + key[len(inner):] if key.startswith(inner) else key] = value
    # Versions stand under both names; the one with `.site` is looked for when the wrapper is loaded.
    versions = getattr(state, "_metadata", {})
    for path in [path for path in versions if f"{path}.".startswith(inner)]:
        versions[f"{prefix}{path[len(inner):]}".removesuffix(".")] = versions[path]


def _name_as_the_site(wrapper: Wrapper, incompatible: tuple[list[str], list[str]]) -> None:
    prefix = wrapper.__dict__.pop("_prefix")
    inner = prefix + SITE + "."
    for keys in incompatible:
        keys[:] = [prefix + key[len(inner):] if key.startswith(inner) else key for key in keys]


def _stand_in_the_way(wrapper: Wrapper, args: tuple[Any, ...]) -> None:
    """Nothing; but where a module has hooks, torch's fused transformer layer calls it, and does not only read it."""


def wrappers_of(site: nn.Module) -> list[Wrapper]:
    """The wrappers around a site, the outermost first; `site` is what the network holds."""
    wrappers = []
    while isinstance(site, Wrapper):
        wrappers.append(site)
        site = site.site
    return wrappers


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `model.named_modules()`, by the names that there are without wrappers: a wrapper stands for its site."""
    seen: set[nn.Module] = set()

    def walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        if module in seen:
            return
        seen.add(module)
        yield path, module
        wrappers = wrappers_of(module)
        site = wrappers[-1].site if wrappers else module
        seen.add(site)
        for name, child in [*site._modules.items(), *((w._child, w._inserted) for w in reversed(wrappers))]:
            if child is not None:
                yield from walk(child, f"{path}.{name}" if path else name)

    return walk(model, "")


def places(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where a network holds a module: the parents, and its names there."""
    return [(parent, name) for parent in model.modules() for name, m in parent._modules.items() if m is module]


def put(places: list[tuple[nn.Module, str]], module: nn.Module) -> None:
    """Let the network hold `module` at these places."""
    for parent, name in places:
        setattr(parent, name, module)

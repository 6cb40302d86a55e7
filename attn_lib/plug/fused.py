"""Fusing two places of a network: a tensor is handed from one to the other within a forward pass.

    Handover  carries it; opened and closed by hooks of the network, so that nothing is kept after the pass
    Offered   stands where the network held the skip, and offers its output
    Fused     stands where the network held the site, and calls the new module with both
"""

from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from .followed import SITE, Followed, Wrapper


class Handover:
    """What is offered in a forward pass of a network, by name, until the pass ends.

    Passes within passes, and passes of several threads, have each their own. A copy starts empty.
    """

    def __init__(self) -> None:
        self._passes: dict[int, list[dict[str, Tensor]]] = {}  # of each thread, the innermost last

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def attach(self, model: nn.Module) -> None:
        """Let the network's forward passes open and close it."""
        model.register_forward_pre_hook(self._open, prepend=True)
        model.register_forward_hook(self._close, always_call=True)

    def detach(self, model: nn.Module) -> None:
        """Take the hooks away again, from a network or a copy of it."""
        for module in model.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)

    def offer(self, name: str, tensor: Tensor) -> None:
        """Hold a tensor until the pass ends; outside of one, nothing happens."""
        if isinstance(tensor, Proxy):  # a recording by torch.fx calls no hooks; it is a pass
            vars(tensor.tracer).setdefault(f"_handed_over_{id(self)}", {})[name] = tensor
        elif passes := self._passes.get(this_thread()):
            passes[-1][name] = tensor

    def take(self, name: str, beside: Tensor) -> Tensor:
        """What was offered last in this pass, in which `beside` is known.

        Raises:
            RuntimeError: outside of a forward pass, or where nothing was offered.
        """
        if isinstance(beside, Proxy):
            offered = vars(beside.tracer).get(f"_handed_over_{id(self)}", {})
        elif passes := self._passes.get(this_thread()):
            offered = passes[-1]
        else:
            raise RuntimeError(f"the output of {name!r} is handed over within a forward pass of the whole network "
                               "alone: call the network that plug.fuse was given; checkpointed activations cannot be "
                               "computed again")
        if name not in offered:
            raise RuntimeError(f"{name!r} was not called in this forward pass, or something has put another module in "
                               "its place")
        return offered[name]

    def _open(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        self._passes.setdefault(this_thread(), []).append({})

    def _close(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        passes = self._passes[this_thread()]
        passes.pop()
        if not passes:
            del self._passes[this_thread()]


def this_thread() -> int:
    return 0 if torch.compiler.is_compiling() else get_ident()


class Offered(Wrapper):
    """y = site(x), which is also offered to a `Fused`.

    Args:
        site: what it stands for.
        name: the site's.
        handover: what carries the output.
        copies: whether a copy is offered, because the network writes into the output later.
    """

    _name = ""
    _handover: Handover | None = None
    _copies = False

    def __init__(self, site: nn.Module, name: str, handover: Handover, copies: bool):
        super().__init__(site)
        self._name, self._handover, self._copies = name, handover, copies

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self._modules[SITE](*args, **kwargs)
        self._handover.offer(self._name, output.clone() if self._copies else output)
        return output

    @property
    def _what(self) -> str:
        return "the offer of its output to a fusion"


class Fused(Followed):
    """y = child(site(x), skip, …), in the place of the site.

    Args:
        site, child, name, copies: as for `Followed`.
        handover: what carries the outputs of the skips.
        skips: their names.
    """

    _handover: Handover | None = None
    _skips: tuple[str, ...] = ()

    def __init__(self, site: nn.Module, child: nn.Module, name: str, copies: bool, handover: Handover,
                 skips: tuple[str, ...]):
        super().__init__(site, child, name, copies)
        self._handover, self._skips = handover, skips

    def _after(self, output: Tensor) -> Tensor:
        return self._modules[self._child](output, *(self._handover.take(skip, output) for skip in self._skips))

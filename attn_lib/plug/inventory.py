"""What stands in a network: listed, checked and taken out, without the report of how it came there."""

from dataclasses import dataclass, field

from torch import nn

from .edits import REPLACED
from .followed import Wrapper, named_modules, places, put, wrappers_of
from .fused import Fused, Offered
from .merged import SCOPE, Merged, close_scopes, is_owner
from .probe import Example, inputs_of, watch


@dataclass(frozen=True)
class Inserted:
    """A module that `plug` put into a network.

    Attributes:
        kind: "insert", "replace" or "fuse".
        site: name of the place, or of the merge.
        path: name of the module; after a replacement the same.
        module: the module itself.
        calls: how often it runs in a forward pass of the example; None without one.
        site_calls: how often its site does; None without an example, after a replacement and for a merge.
    """

    kind: str
    site: str
    path: str
    module: nn.Module = field(repr=False)
    calls: int | None = None
    site_calls: int | None = None


def inserted(model: nn.Module, example: Example = None) -> list[Inserted]:
    """What `plug` has put into a network, as far as the network itself shows it.

    Copies, pickled and loaded networks show it as well, and those inside `DistributedDataParallel`, where names begin
    with "module.". A recorded graph (`torch.fx`, `torch.export`) holds operations and shows nothing.

    Args:
        model: the network.
        example: an input of the network, or a tuple of them; it is passed through in eval mode, to count calls.

    Returns:
        One row a module, in the network's order.
    """
    found: list[tuple[Inserted, nn.Module | None]] = []
    owners = {vars(site)[SCOPE]: path for path, module in named_modules(model)
              for site in [wrappers_of(module)[-1].site if wrappers_of(module) else module] if is_owner(site)}
    for path, module in named_modules(model):
        wrappers = wrappers_of(module)
        for wrapper in reversed(wrappers):
            if isinstance(wrapper, Merged):
                merge = f"{owners.get(wrapper._scope, '?')}:{wrapper._spot.merge}"
                found.append((Inserted("fuse", merge, f"{path}.{wrapper._child}", wrapper._inserted), None))
            elif not isinstance(wrapper, Offered):
                kind = "fuse" if isinstance(wrapper, Fused) else "insert"
                row = Inserted(kind, path, f"{path}.{wrapper._child}", wrapper._inserted)
                found.append((row, wrapper.site))
        site = wrappers[-1].site if wrappers else module
        if REPLACED in vars(site):
            found.append((Inserted("replace", path, path, site), None))
    inputs = inputs_of(example)
    if inputs is None:
        return [row for row, _ in found]
    watched = {module for row, site in found for module in (row.module, site) if module is not None}
    _, flows = watch(model, inputs, watched)
    return [Inserted(row.kind, row.site, row.path, row.module, flows[row.module].calls,
                     None if site is None else flows[site].calls) for row, site in found]


def check(model: nn.Module, kind: str, expected: list[tuple[str, str]], example: Example) -> None:
    """Every module expected must be there and, with an example, run once for each call of its site.

    Args:
        model: the network, or what was made of it.
        kind: "insert", "replace" or "fuse".
        expected: the names of sites and modules.
        example: as for `inserted`.

    Raises:
        ValueError: naming the site.
    """
    there = [row for row in inserted(model, example) if row.kind == kind]
    for site, path in expected:
        # Within another network, such as DistributedDataParallel, names have something before them.
        rows = [row for row in there if row.path == path or row.path.endswith(f".{path}")]
        if not rows:
            raise ValueError(f"site {site!r}: the module {path!r} that was put there is gone; something has rebuilt "
                             "the network without it, or it was taken out")
        for row in rows:
            if row.calls == 0:
                raise ValueError(f"site {site!r}: the module {path!r} is there, but does not run in a forward pass")
            if row.site_calls not in (None, row.calls):
                raise ValueError(f"site {site!r} runs {row.site_calls} times in a forward pass, the module {path!r} "
                                 f"after it {row.calls} times")


def remove(model: nn.Module) -> list[str]:
    """Take every inserted and fused module out of a network, without a report; converted sites stay as they are.

    Replacements stay: the network does not hold what they replaced.

    Returns:
        The names of what was taken out.
    """
    names = [row.path for row in inserted(model) if row.kind != "replace"]
    for wrapper in [module for module in model.modules() if isinstance(module, Wrapper)]:
        put(places(model, wrapper), wrapper.site)
        if isinstance(wrapper, Fused):
            wrapper._handover.detach(model)
    close_scopes(model)
    return names

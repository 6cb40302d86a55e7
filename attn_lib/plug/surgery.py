"""Putting modules in: after a sub-module, or instead of it."""

import warnings
from typing import Any

from torch import nn

from ..measure.call import Arguments, Inputs, as_inputs
from .edits import Insertion, Replacement, check_replaceable, inserted_after, revert_all
from .probe import Flow, Probe, channels_of, check_fits, count, keeps_its_output, one_output
from .recipe import Module, Recipe, settle
from .report import Report, Site
from .sites import find, find_ends, similar

Example = Inputs | None


def insert(model: nn.Module, pattern: str, module: Module, *, example: Example = None,
           measure_time: bool = False, **options: Any) -> Report:
    """Put a new module after every sub-module whose name matches: y = module(site(x)).

    Each new module becomes a child of its site and is called by a forward hook there, so the network's own
    modules, names, weights and references stay what they are, and `deepcopy`, `state_dict`, `torch.compile` and
    `torch.export` see a module like any other. It takes over the site's device, type, memory format and
    mode. After an `nn.Sequential` means after its last layer.

    Args:
        model: the network; changed in place.
        pattern: names of sites, such as "layer[1-4].*.bn3"; the rules are those of `plug.sites.find`: `*` stays
            within one part of a dotted name, `**` stands for any number of parts.
        module: id of a module of the catalog, its class, or a function from the number of channels to a module.
        example: an input of the network, a tuple of them, or a dictionary of its arguments by name, on its device.
            It is passed through in eval mode to learn shapes and channels and to compare outputs, and leaves running
            statistics alone. Without it the sites must declare their channels, and nothing is compared.
        measure_time: also time the network's forward pass before and after, in turns.
        **options: of the module, `channels` excepted.

    Returns:
        What changed; `report.undo()` takes it back.

    Raises:
        ValueError: if nothing matches; a site is not called, returns no single tensor, or returns axes that the
            module does not take; channels do not fit, or an option is unknown, missing or out of range; or a site has
            such a module already. The network is then unchanged.

    Warns:
        UserWarning: if the network holds such modules already, a site is called more than once, or a module that
            the catalog says starts as the identity changed the output.
    """
    recipe = Recipe(module, options)
    sites = find_ends(model, pattern)
    if recipe.entry is not None and (held := similar(model, recipe.entry)):
        warnings.warn(f"the network holds {len(held)} of {recipe.label} already, such as {held[0]!r}", UserWarning,
                      stacklevel=2)
    probe = Probe(model, _inputs(example), sites.values(), measure_time)

    rows: list[Site] = []
    new: dict[nn.Module, nn.Module] = {}
    for path, site in sites.items():
        flow = probe.flows.get(site)
        output = None if flow is None else one_output(path, flow)
        channels = channels_of(path, site, output, recipe.axes)
        new[site] = child = recipe.for_channels(channels)
        if any(type(other) is type(child) for other in inserted_after(site)):
            raise ValueError(f"site {path!r} has a {type(child).__name__} inserted already; undo() that first")
        settle(child, site, output, model)
        rows.append(_row(path, channels, flow, child))
        if flow is not None and flow.calls > 1:
            warnings.warn(f"site {path!r} is called {flow.calls} times in a forward pass; the one new module acts "
                          "each time", UserWarning, stacklevel=2)

    edits: list[Insertion] = []
    try:
        for row, (site, child) in zip(rows, new.items(), strict=True):
            copies = row.shape is None or keeps_its_output(row.path, child, row.shape)
            edits.append(Insertion(row.path, site, child, recipe.label, copies))
        effect, flows = probe.again()
        for edit in edits if flows else ():
            edit.check_calls(probe.flows[edit.site].calls, flows[edit.child].calls)
    except BaseException:
        revert_all(edits)
        raise
    report = Report("insert", recipe.label, tuple(rows), (probe.params, count(model)), **effect,
                    identity=recipe.entry.identity_at_init if recipe.entry else None, _edits=edits)
    if report.identity and report.change:
        warnings.warn(f"{recipe.label} should start as the identity, but the output of the network changed by up to "
                      f"{report.change:.1e}", UserWarning, stacklevel=2)
    return report


def replace(model: nn.Module, pattern: str, module: Module, *, example: Example = None,
            measure_time: bool = False, **options: Any) -> Report:
    """Put a new module in the place of every sub-module whose name matches.

    A class of the catalog that can take over a convolution does so: `DeformConv2d` keeps weight, bias, stride,
    padding, dilation and groups (its `from_conv`). Another class is made for the site's channels, which must be
    the same before and after it. A function is given the sub-module and returns the new one.

    Args:
        model, pattern, example, measure_time: as for `insert`.
        module: id of a module of the catalog, its class, or a function from the replaced module to the new one.
        **options: of the module.

    Returns:
        What changed; `report.undo()` puts the replaced modules back.

    Raises:
        ValueError: as for `insert`; also if a site carries hooks, or the new module returns another shape. The
            network is then unchanged.
    """
    recipe = Recipe(module, options)
    sites = find(model, pattern)
    inside = next((p for p in sites for q in sites if p.startswith(q + ".")), None)
    if inside is not None:
        raise ValueError(f"pattern={pattern!r} matches {inside!r} and a module that holds it; name one of them")
    for path, site in sites.items():
        check_replaceable(path, site)
    probe = Probe(model, _inputs(example), sites.values(), measure_time)

    rows: list[Site] = []
    new: dict[nn.Module, nn.Module] = {}
    for path, site in sites.items():
        flow = probe.flows.get(site)
        output = None if flow is None else one_output(path, flow)
        new[site] = child = recipe.in_place_of(path, site, flow)
        settle(child, site, output, model)
        rows.append(_row(path, getattr(site, "out_channels", None), flow, child))
    row_of = dict(zip(new.values(), rows, strict=True))

    def check(module: nn.Module, y: Any) -> None:
        if module in row_of:
            check_fits(row_of[module].path, row_of[module].shape, y)

    edits: list[Replacement] = []
    try:
        for path, site in sites.items():
            edits.append(Replacement(model, path, site, new[site]))
        effect, _ = probe.again(check)
    except BaseException:
        revert_all(edits)
        raise
    return Report("replace", recipe.label, tuple(rows), (probe.params, count(model)), **effect, _edits=edits)


def _inputs(example: Example) -> Arguments | None:
    return None if example is None else as_inputs(example)


def _row(path: str, channels: int | None, flow: Flow | None, child: nn.Module) -> Site:
    shape = None if flow is None else tuple(one_output(path, flow).shape)
    return Site(path, channels, shape, None if flow is None else flow.calls, count(child))

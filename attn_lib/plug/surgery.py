"""Putting modules in: after a sub-module, instead of it, or between several."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .edits import Fusion, Insertion, Merging, Replacement, check_calls, check_replaceable, free_name, revert_all
from .followed import wrappers_of
from .merged import Spot
from .merges import Merge, merges
from .probe import (
    Example,
    Flow,
    Probe,
    channels_of,
    check_fits,
    count,
    inputs_of,
    keeps_its_output,
    one_output,
    order,
    tried,
)
from .recipe import Module, Place, Recipe, settle
from .report import Report, Site
from .sites import find, find_ends, similar
from .tokens import Tokens, View, view_of


def insert(model: nn.Module, pattern: str, module: Module, *, example: Example = None, tokens: Tokens = None,
           prefix: int = 0, measure_time: bool = False, **options: Any) -> Report:
    """Put a new module after every sub-module whose name matches: y = module(site(x)).

    A wrapper (`plug.followed.Followed`) takes the site's place and calls both. The network's own modules, weights and
    references stay what they are, `state_dict` gains keys and loses none, and the site's attributes are read
    through the wrapper; `deepcopy`, `torch.compile` and `torch.export` see modules like any other. What converts a
    site (`SyncBatchNorm`, quantisation, fusing by `torch.fx`) converts it within the wrapper. What folds a norm
    into the convolution before it, and would lose the new module, meets an error. The new module takes over the
    site's device, memory format and mode, and the floating-point type of what flows there. After an `nn.Sequential`
    means after its last layer.

    The order of things: convert the network, insert, then make the optimiser, the average of weights (EMA),
    `DistributedDataParallel` and `torch.compile`. An optimiser made before knows nothing of the new parameters and
    never trains them; an average made before has no place for them. Converting afterwards works, too, and
    `report.check()` says whether each module still runs.

    Args:
        model: the network; changed in place.
        pattern: names of sites, such as "layer[1-4].*.bn3"; the rules are those of `plug.sites.find`: `*` stays
            within one part of a dotted name, `**` stands for any number of parts.
        module: id of a module of the catalog, its class, or a function from the number of channels to a module.
        example: an input of the network, a tuple of them, or a dictionary of its arguments by name, on its device.
            It is passed through in eval mode to learn shapes and channels and to compare outputs, and leaves running
            statistics alone. Without it the sites must declare their channels, and nothing is compared.
        tokens: for sites that return tokens (B, N, C) or (B, H, W, C): the (H, W) that they make, or True for what
            the example shows (a square, where it shows N alone). A module of maps then sees (B, C, H, W), one of
            tokens (B, H·W, C). Others' modules are taken to be of maps.
        prefix: how many tokens at the beginning (class tokens, registers) go past the module.
        measure_time: also time the network's forward pass before and after, in turns.
        **options: of the module, `channels` excepted. `height`, `width`, `frames` and `length` are filled in from the
            example, where the module cannot be made without. An option of a module of the catalog may be a function of
            the site: it is given a `Place` and returns the value.

    Returns:
        What changed; `report.undo()` takes it back, `report.check()` looks whether it still stands.

    Raises:
        ValueError: if nothing matches; a site is not called, or called past the network's sub-modules; it returns
            no single tensor, or axes that the module does not take; channels do not fit, or an option is unknown,
            missing or out of range; or a site has such a module already. The network is then unchanged.

    Warns:
        UserWarning: if the network holds such modules already, a site is called more than once, or a module that
            the catalog says starts as the identity changed the output.
    """
    recipe = Recipe(module, options)
    sites = find_ends(model, pattern)
    if recipe.entry is not None and (held := similar(model, recipe.entry)):
        warnings.warn(f"the network holds {len(held)} of {recipe.label} already, such as {held[0]!r}", UserWarning,
                      stacklevel=2)
    probe = Probe(model, inputs_of(example), sites.values(), measure_time)

    rows: list[Site] = []
    new: dict[nn.Module, nn.Module] = {}
    seen: dict[nn.Module, Tensor | None] = {}  # what the new module sees, without its values
    views: dict[nn.Module, View | None] = {}
    for path, site in sites.items():
        flow = probe.flows.get(site)
        output = None if flow is None else one_output(path, flow)
        view = view_of(path, site, output, recipe.axes, tokens, prefix)
        channels = channels_of(path, site, output, view.axes if view else recipe.axes)
        seen[site] = output if view is None else view.enter(output)
        shape = None if output is None else tuple(seen[site].shape)
        new[site] = child = recipe.for_place(Place(path, site, channels, shape))
        views[site] = view
        if any(type(wrapper._inserted) is type(child) for wrapper in wrappers_of(site)):
            raise ValueError(f"site {path!r} has a {type(child).__name__} inserted already; undo() that first")
        settle(child, site, seen[site], model)
        rows.append(_row(path, channels, flow, child, f"{path}.{free_name(model, site, recipe.label)}"))
        if flow is not None and flow.calls > 1:
            warnings.warn(f"site {path!r} is called {flow.calls} times in a forward pass; the one new module acts "
                          "each time", UserWarning, stacklevel=2)

    edits: list[Insertion] = []
    try:
        for row, (site, child) in zip(rows, new.items(), strict=True):
            copies = row.shape is None or keeps_its_output(row.path, child, tuple(seen[site].shape))
            name = row.name.rpartition(".")[2]
            edits.append(Insertion(model, row.path, site, child, name, copies, views[site]))
        effect, flows = probe.again()
        for edit in edits if flows else ():
            check_calls(edit.path, probe.flows[edit.site].calls, flows[edit.child].calls)
    except BaseException:
        revert_all(edits)
        raise
    report = Report("insert", recipe.label, tuple(rows), (probe.params, count(model)), **effect, _model=model,
                    identity=recipe.entry.identity_at_init if recipe.entry else None, _edits=edits)
    if report.identity and report.change:
        warnings.warn(f"{recipe.label} should start as the identity, but the output of the network changed by up to "
                      f"{report.change:.1e}", UserWarning, stacklevel=2)
    return report


def replace(model: nn.Module, pattern: str, module: Module, *, example: Example = None, tokens: Tokens = None,
            prefix: int = 0, measure_time: bool = False, **options: Any) -> Report:
    """Put a new module in the place of every sub-module whose name matches.

    As for `insert`, this comes before the optimiser and what follows it: an optimiser made before goes on training the
    weights of what was replaced.

    A class of the catalog that can take over a convolution does so: `DeformConv2d` keeps weight, bias, stride,
    padding, dilation and groups (its `from_conv`). Another class is made for the site's channels, which must be
    the same before and after it. A function is given the sub-module and returns the new one.

    Args:
        model, pattern, example, tokens, prefix, measure_time: as for `insert`.
        module: id of a module of the catalog, its class, or a function from the replaced module to the new one.
        **options: of the module, as for `insert`.

    Returns:
        What changed; `report.undo()` puts the replaced modules back.

    Raises:
        ValueError: as for `insert`; also if a site carries hooks or insertions, or the new module returns another
            shape. The network is then unchanged.
    """
    recipe = Recipe(module, options)
    sites = find(model, pattern)
    inside = next((p for p in sites for q in sites if p.startswith(q + ".")), None)
    if inside is not None:
        raise ValueError(f"pattern={pattern!r} matches {inside!r} and a module that holds it; name one of them")
    for path, site in sites.items():
        check_replaceable(path, site)
    probe = Probe(model, inputs_of(example), sites.values(), measure_time)

    rows: list[Site] = []
    new: dict[nn.Module, nn.Module] = {}
    for path, site in sites.items():
        flow = probe.flows.get(site)
        output = None if flow is None else one_output(path, flow)
        view = view_of(path, site, output, recipe.axes, tokens, prefix)
        new[site] = child = recipe.in_place_of(path, site, flow, view)
        settle(child, site, output, model)
        rows.append(_row(path, getattr(site, "out_channels", None), flow, child, path))
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
    return Report("replace", recipe.label, tuple(rows), (probe.params, count(model)), **effect, _model=model,
                  _edits=edits)


def fuse(model: nn.Module, site: str | int, module: Module, *, skip: str | Sequence[str] | None = None,
         example: Example, measure_time: bool = False, **options: Any) -> Report:
    """Fuse the output of a sub-module with those of others, y = module(site(x), skip, …), or what the network merges.

    The site's output is then y; those of the others go on as they did. They are handed over within one forward pass of
    the network, by wrappers as of `insert` in both places, and are not kept after it. Passes within passes, several
    threads, copies, `torch.compile` and `torch.export` work; what does not is to call parts of the network
    alone, and to compute the site again for activation checkpointing: both meet an error.

    A merge that the network's code writes out, `a + b` or `torch.cat([a, b], 1)`, is no sub-module. `plug.merges`
    lists them; the site is then a merge's index or its name, such as "decoder:cat0", and no skip is given. An addition
    becomes module(a, b). A concatenation becomes that, too, if the module returns as many channels; if it returns those
    of the first input, it stands for that one, cat([module(a, b), b], 1), since what comes next expects all of them.
    The new module is named after the sub-module that is called last before the merge or, where none is, after the one
    whose `forward` writes it: its owner. What else is inserted, converted or taken out, before or after, makes no
    difference. Copies, pickles, several threads, `torch.jit.trace`, and from torch 2.6 on `torch.compile` and
    `torch.export` work, for concatenations `torch.fx`, too. A pass that goes past the merge meets an error: parts of
    the owner called alone or by another method than `forward`, checkpointing of the merge without its owner, a network
    that takes another way in training, `torch.fx` at an addition. A merge before every sub-module of the network has no
    place for a module, and one of a recorded graph no owner that could be watched; both are refused. Give the network a
    module that merges, such as ultralytics' Concat, and `replace` that.

    Args:
        model, module, measure_time: as for `insert`; the module takes several inputs of the site's shape or of whatever
            shapes it asks for, and returns the site's shape.
        site: name of the sub-module whose output is fused, or a pattern that matches it alone; or a merge.
        skip: the same of the other, or several: each is called before the site, in the order in which the module takes
            them. Not for a merge, whose inputs the module takes in their order.
        example: an input of the network, or a tuple of them, as for `insert`; without it nobody knows the order.
        **options: of the module, as for `insert`.

    Returns:
        What changed; `report.undo()` takes it back.

    Raises:
        ValueError: as for `insert`; also if a name matches several sub-modules, or a skip is called after the site,
            or not once before each of its calls; or if a merge cannot be replaced. The network is then unchanged.
    """
    recipe = Recipe(module, options, fuses=True)
    inputs = inputs_of(example)
    if inputs is None:
        raise ValueError("example= must be an input of the network: without a forward pass nobody knows the order")
    if isinstance(site, int) or ":" in site:
        if skip is not None:
            raise ValueError(f"skip={skip!r} must be left out: the merge {site!r} has its inputs")
        return _fuse_merge(model, _merge(model, site, example), recipe, inputs, measure_time)
    if skip is None:
        raise ValueError(f"skip= must name what the output of site={site!r} is fused with; for a merge in the "
                         "network's code, site is an index or a name that plug.merges(model, example) lists")
    path, target = _only(model, "site", site)
    skips = dict(_only(model, "skip", name) for name in ([skip] if isinstance(skip, str) else skip))
    if not skips or any(other is target for other in skips.values()):
        raise ValueError(f"skip={skip!r} must name at least one sub-module, other than site={site!r}")

    probe = Probe(model, inputs, [target, *skips.values()], measure_time)
    output = one_output(path, probe.flows[target])
    others = [one_output(name, probe.flows[other]) for name, other in skips.items()]
    called, written = order(model, inputs, [target, *skips.values()])
    for number, name in enumerate(skips, 1):
        _check_order(path, name, ["site" if i == 0 else "skip" for i in called if i in (0, number)])
    channels = channels_of(path, target, output, recipe.axes)
    child = recipe.for_place(Place(path, target, channels, tuple(output.shape)))
    settle(child, target, output, model)
    name = free_name(model, target, recipe.label)
    row = _row(path, channels, probe.flows[target], child, f"{path}.{name}")
    copies = keeps_its_output(path, child, *(tuple(x.shape) for x in (output, *others)))

    edits: list[Fusion] = []
    try:
        copied = dict(zip(skips, zip(skips.values(), written[1:], strict=True), strict=True))
        edits.append(Fusion(model, path, target, copied, child, name, copies))
        effect, flows = probe.again()
        check_calls(path, probe.flows[target].calls, flows[child].calls)
    except BaseException:
        revert_all(edits)
        raise
    return Report("fuse", recipe.label, (row,), (probe.params, count(model)), **effect, skips=tuple(skips),
                  identity=recipe.entry.identity_at_init if recipe.entry else None, _model=model, _edits=edits)


def _merge(model: nn.Module, site: str | int, example: Example) -> Merge:
    """The merge of an index or a name."""
    found = merges(model, example)
    for merge in found:
        if site in (merge.index, merge.name) and not isinstance(site, bool):
            return merge
    there = ", ".join(f"{merge.index} {merge.name!r}" for merge in found[:8])
    raise ValueError(f"site={site!r} is no merge of the network; there are {there or 'none'}{' …' * (len(found) > 8)}")


def _fuse_merge(model: nn.Module, merge: Merge, recipe: Recipe, inputs: Any, measure_time: bool) -> Report:
    if merge.module is not None:
        raise ValueError(f"merge {merge.name!r} is replaced by {merge.module!r} already; undo() that first")
    if len(merge._moments) > 1:
        raise ValueError(f"merge {merge.name!r} happens {merge.calls} times in a forward pass, each time otherwise: "
                         "with other channels, or after other sub-modules; make it a module for each")
    moment = merge._moments[0]
    if moment.place is model:
        raise ValueError(f"merge {merge.name!r} comes before any sub-module of the network is called, and there is no "
                         "place for a new module: merge outside of the network, or in a module of it, and "
                         "plug.replace that")
    probe = Probe(model, inputs, [moment.place], measure_time)
    axes = recipe.axes or ("B", "C", "H", "W")
    if len(axes) != 4:
        raise ValueError(f"merge {merge.name!r} is of maps {merge.shapes[0]}; the module needs ({', '.join(axes)})")
    channels = merge.shapes[0][axes.index("C")]
    child = recipe.for_place(Place(merge.name, moment.place, channels, merge.shapes[0]))
    settle(child, moment.place, merge._operands[0], model)
    y, kept = tried(merge.name, child, *merge.shapes)
    shape = getattr(y, "shape", None)
    first = merge.kind == "cat" and shape == merge.shapes[0]
    if not first and shape != merge.shape:
        what = f"the new module's shape {tuple(shape)}" if shape is not None else f"a {type(y).__name__}"
        or_first = f", or that of its first input, {merge.shapes[0]}" if merge.kind == "cat" else ""
        raise ValueError(f"merge {merge.name!r} makes shape {merge.shape}; {what} does not fit there: it must be that"
                         f"{or_first}")
    name = free_name(model, moment.place, recipe.label)
    row = Site(merge.name, channels, merge.shape, merge.calls, count(child), f"{moment.path}.{name}")
    spot = Spot(merge.name.rpartition(":")[2], merge.kind, moment.call, moment.before, moment.entering, moment.widths,
                first, kept)

    edits: list[Merging] = []
    try:
        edits.append(Merging(model, merge.name, merge._owner, moment.place, child, name, spot))
        effect, flows = probe.again()
        if flows[child].calls != merge.calls:
            raise ValueError(f"merge {merge.name!r} happens {merge.calls} times in a forward pass, but the new module "
                             f"runs {flows[child].calls} times: {moment.path!r} is also held elsewhere than as a "
                             "sub-module, such as in a list or by a function")
    except BaseException:
        revert_all(edits)
        raise
    return Report("fuse", recipe.label, (row,), (probe.params, count(model)), **effect,
                  skips=tuple(source for source in merge.inputs[1:] if source is not None),
                  identity=recipe.entry.identity_at_init if recipe.entry else None, _model=model, _edits=edits)


def _only(model: nn.Module, argument: str, pattern: str) -> tuple[str, nn.Module]:
    """The one sub-module that matches, and its name."""
    found = list(find_ends(model, pattern).items())
    if len(found) > 1:
        raise ValueError(f"{argument}={pattern!r} must name one sub-module; it matches "
                         f"{', '.join(path for path, _ in found[:4])}{' …' if len(found) > 4 else ''}")
    return found[0]


def _check_order(site: str, skip: str, calls: list[str]) -> None:
    """A skip is called before the site: once before all of its calls, or once before each."""
    if calls[0] == "site":
        raise ValueError(f"skip={skip!r} is called after site={site!r} in a forward pass; it must come before: "
                         "exchange the two, or name others")
    times = calls.count("skip")
    if times > 1 and calls != ["skip", "site"] * times:
        raise ValueError(f"skip={skip!r} is called {times} times in a forward pass and site={site!r} "
                         f"{calls.count('site')} times, in the order {', '.join(calls)}: which belong together "
                         "is not to be known")


def _row(path: str, channels: int | None, flow: Flow | None, child: nn.Module, name: str) -> Site:
    shape = None if flow is None else tuple(one_output(path, flow).shape)
    return Site(path, channels, shape, None if flow is None else flow.calls, count(child), name)

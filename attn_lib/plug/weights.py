"""Weights of other packages' modules, in this library's names and shapes.

What is known here are names. Where two modules are the same operator only with certain options, such as timm's
non-local block, which divides by √C, the class's errata say so, and `Entry.counterpart` holds the options.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import catalog


@dataclass(frozen=True)
class Stacked:
    """Several of our layers, one below the other in one of theirs; head by head where `by_head`."""

    names: tuple[str, ...]
    by_head: bool = False


@dataclass(frozen=True)
class LastRows:
    """A table of ours, which ends theirs: the rows before are never read."""

    name: str


@dataclass(frozen=True)
class BiasBeforeNorm:
    """A bias that ours has not, since the batch norm behind it takes it away: it shifts the running mean."""

    norm: str


Rule = str | Stacked | LastRows | BiasBeforeNorm

# id -> layer or parameter there -> ours; `*` is a part of a name that stays. Who calls it so is said behind it.
NAMES: dict[str, dict[str, Rule]] = {
    "aspp": {"convs": "convs", "project": "project"},  # torchvision ASPP
    "cbam": {"channel.fc1": "channel.W0", "channel.fc2": "channel.W1",  # timm CbamModule
             "spatial.conv.conv": "spatial.f", "spatial.conv.bn": "spatial.norm"},
    "condconv": {"routing": "Walpha", "conv.weight": "weight", "conv.bias": "bias"},  # timm's routing beside CondConv2d
    "coord": {"conv1.weight": "F1.weight", "conv1.bias": BiasBeforeNorm("norm"), "bn1": "norm",  # timm CoordAttn
              "conv_h": "Fh", "conv_w": "Fw"},
    "depthwise_separable": {"conv_dw": "depthwise", "conv_pw": "pointwise"},  # timm SeparableConv2d
    "eca": {"conv": "conv"},  # timm EcaModule, the release
    "genet": {},  # timm GatherExcite has no weights
    "halo": {"q": "Wq", "kv": Stacked(("Wk", "Wv"), by_head=True),  # timm HaloAttn
             "pos_embed.height_rel": LastRows("Rh"), "pos_embed.width_rel": LastRows("Rw")},
    "mhsa": {"qkv": Stacked(("Wq", "Wk", "Wv")),  # timm BottleneckAttn
             "pos_embed.height_rel": "Rh", "pos_embed.width_rel": "Rw"},
    "mobilevit": {  # timm MobileVitBlock
        "conv_kxk.conv": "local.0", "conv_kxk.bn": "local.1", "conv_1x1": "Wl",
        "transformer.*.norm1": "blocks.*.norm1", "transformer.*.norm2": "blocks.*.norm2",
        "transformer.*.attn.qkv": Stacked(("blocks.*.attention.Wq", "blocks.*.attention.Wk", "blocks.*.attention.Wv")),
        "transformer.*.attn.proj": "blocks.*.attention.Wo",
        "transformer.*.mlp.fc1": "blocks.*.W1", "transformer.*.mlp.fc2": "blocks.*.W2", "norm": "norm",
        "conv_proj.conv": "project.0", "conv_proj.bn": "project.1", "conv_fusion.conv": "fuse.0",
        "conv_fusion.bn": "fuse.1",
    },
    "non_local": {"t": "Wtheta", "p": "Wphi", "g": "Wg", "z": "Wz", "norm": "norm"},  # timm NonLocalAttn
    "pconv": {"partial_conv3": "conv"},  # timm Partial_conv3, the release
    "resnest": {name: name for name in ("conv", "bn0", "fc1", "bn1", "fc2")},  # timm SplitAttn
    "se": {"fc1": "W1", "fc2": "W2",  # timm SEModule, torchvision SqueezeExcitation
           "conv_reduce": "W1", "conv_expand": "W2",  # timm SqueezeExcite, of the EfficientNets
           "fc.0": "W1", "fc.2": "W2"},  # the usual copies
    "sk": {"paths.*.conv": "branches.*.0", "paths.*.bn": "branches.*.1",  # timm SelectiveKernel
           "attn.fc_reduce": "Wz", "attn.bn": "norm", "attn.fc_select": "Wa"},
    "swiftformer": {"to_query": "Wq", "to_key": "Wk", "proj": "Wp", "final": "Wo", "w_g": "wa"},  # timm
    "vit": {
        "norm1": "norm1", "norm2": "norm2", "attn.qkv": Stacked(("MSA.Wq", "MSA.Wk", "MSA.Wv")),  # timm Block
        "attn.proj": "MSA.Wo", "mlp.fc1": "W1", "mlp.fc2": "W2",
        "ln_1": "norm1", "ln_2": "norm2", "mlp.0": "W1", "mlp.3": "W2",  # torchvision EncoderBlock
        "self_attention.in_proj_weight": Stacked(("MSA.Wq.weight", "MSA.Wk.weight", "MSA.Wv.weight")),
        "self_attention.in_proj_bias": Stacked(("MSA.Wq.bias", "MSA.Wk.bias", "MSA.Wv.bias")),
        "self_attention.out_proj": "MSA.Wo",
    },
}


def convert(state: Mapping[str, Tensor], module: nn.Module, *, prefix: str = "") -> dict[str, Tensor]:
    """The weights of timm's or torchvision's module as a `state_dict` of ours.

    >>> se.load_state_dict(plug.convert(theirs.state_dict(), se))
    >>> se.load_state_dict(plug.convert(checkpoint, se, prefix="layer1.0.se."))

    With it `plug.replace` puts our modules into a trained network in place of theirs, and its report says whether the
    output is the same:

    >>> def ours(theirs):
    ...     se = attn_lib.create("se", theirs.fc1.in_channels, reduction=16)
    ...     se.load_state_dict(plug.convert(theirs.state_dict(), se))
    ...     return se
    >>> print(plug.replace(net, "layer*.*.se", ours, example=images))

    A layer that has no bias there gets one of zeros where ours has one: the same output. A state holds weights and no
    activations, norms' ε or scales: compare outputs once, on a batch of real inputs.

    Args:
        state: of their module, or of a network that holds it. It is left as it is; the result may share its memory.
        module: ours, made with the options that fit; it is left as it is.
        prefix: what keys of a network's state begin with, up to and with the dot before the module's own.

    Returns:
        A tensor for every key of `module.state_dict()`.

    Raises:
        ValueError: if no package is known whose weights the module takes, no key begins with `prefix`, keys are left
            over or missing, two of theirs are one of ours, or shapes differ.
    """
    entry = catalog.entry_of(type(module))
    if entry is None or entry.id not in NAMES:
        raise ValueError(f"module={type(module).__name__} takes no weights that are known here; those of "
                         f"{', '.join(NAMES)} do")
    given = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if state and not given:
        raise ValueError(f"prefix={prefix!r} begins no key of the state; its first is {next(iter(state))!r}")
    wanted, made, left = module.state_dict(), dict[str, Tensor](), []
    shifts: list[tuple[str, Tensor]] = []
    for key, value in given.items():
        rule, parts = _rule(NAMES[entry.id], key)
        if isinstance(rule, BiasBeforeNorm) and f"{rule.norm}.running_mean" in wanted:
            shifts.append((f"{rule.norm}.running_mean", value))
            continue
        names = () if rule is None or isinstance(rule, BiasBeforeNorm) else [_filled(name, parts) for name in _of(rule)]
        if not names or not all(name in wanted for name in names):
            left.append(prefix + key)
            continue
        for name, part in zip(names, _pieces(rule, key, value, module, [wanted[name] for name in names]), strict=True):
            if name in made:
                raise ValueError(f"state: {prefix + key!r} is {name!r}, which another key was already")
            made[name] = _fitted(prefix + key, part, name, wanted[name])
    for name in wanted.keys() - made.keys():
        layer, _, what = name.rpartition(".")
        if what == "num_batches_tracked":
            made[name] = torch.zeros_like(wanted[name])
        elif what == "bias" and f"{layer}.weight" in made:
            made[name] = made[f"{layer}.weight"].new_zeros(wanted[name].shape)
    missing = [name for name in wanted if name not in made]
    if left or missing:
        said = [f"{what}: {', '.join(names)}" for what, names in (("left over", left), ("missing", missing)) if names]
        raise ValueError(f"state does not fit {type(module).__name__}; {'; '.join(said)}. Was one of the two made with "
                         "other options, or does a prefix stand before the keys?")
    for name, value in shifts:
        made[name] = made[name] - value
    return {name: made[name] for name in wanted}


def _rule(names: Mapping[str, Rule], key: str) -> tuple[Rule | None, tuple[str, ...]]:
    """The rule for a key, and the parts that stay: what `*` stands for, and what follows the layer's name."""
    for pattern, rule in names.items():
        found = re.fullmatch(re.escape(pattern).replace(r"\*", r"([^.]+)") + r"((?:\..+)?)", key)
        if found:
            return rule, found.groups()
    return None, ()


def _of(rule: Rule) -> tuple[str, ...]:
    if isinstance(rule, Stacked):
        return rule.names
    return (rule if isinstance(rule, str) else rule.name if isinstance(rule, LastRows) else rule.norm,)


def _filled(name: str, parts: tuple[str, ...]) -> str:
    for part in parts[:-1]:
        name = name.replace("*", part, 1)
    return name + parts[-1]


def _pieces(rule: Rule | None, key: str, value: Tensor, module: nn.Module, wanted: list[Tensor]) -> Iterator[Tensor]:
    """What a tensor of theirs gives to each of ours."""
    if isinstance(rule, LastRows):
        yield value[-len(wanted[0]):]
    elif isinstance(rule, Stacked):
        rows = [len(t) for t in wanted]
        if len(value) != sum(rows):
            raise ValueError(f"state: {key!r} has shape {tuple(value.shape)}; it must have {sum(rows)} rows")
        heads = getattr(module, "heads", 1) if rule.by_head else 1
        by_head = value.unflatten(0, (heads, -1)).split([n // heads for n in rows], 1)
        yield from (part.flatten(0, 1) for part in by_head)
    else:
        yield value


def _fitted(key: str, value: Tensor, name: str, wanted: Tensor) -> Tensor:
    """In the shape of ours: a 1 × 1 convolution is a linear layer there and here, a vector may have axes of one."""
    if [n for n in value.shape if n > 1] != [n for n in wanted.shape if n > 1]:
        raise ValueError(f"state: {key!r} has shape {tuple(value.shape)}; {name!r} must have {tuple(wanted.shape)}. "
                         "Was one of the two made with other options?")
    return value.reshape(wanted.shape)

"""How things are said in a diagram and on a card: names, parameters, autograd's operations, a module's limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .. import catalog

_SILENT = {  # operations that move or copy entries without changing what a person calls the value
    "Alias", "AsStrided", "Cat", "Clone", "ConstantPadNd", "Contiguous", "CopySlices", "Detach", "Expand", "Movedim",
    "Permute", "Reshape", "ReshapeAlias", "Select", "Slice", "Split", "SplitWithSizes", "Squeeze", "Stack", "T",
    "ToCopy", "Transpose", "Unbind", "Unfold", "UnsafeSplit", "UnsafeView", "Unsqueeze", "View",
}

_SPOKEN = {
    "AdaptiveAvgPool2D": "average pool", "AdaptiveMaxPool2D": "max pool", "Add": "+", "Addmm": "matmul", "Amax": "max",
    "Amin": "min", "AvgPool2D": "average pool", "Baddbmm": "matmul, +", "Bmm": "matmul", "Convolution": "conv",
    "CudnnBatchNorm": "batch norm", "Div": "÷", "Embedding": "look up", "Gather": "gather",
    "GridSampler2D": "grid sample", "Index": "gather", "IndexSelect": "gather", "Linear": "matmul",
    "Logsumexp": "log-sum-exp", "MaskedFill": "mask", "MaxPool2DWithIndices": "max pool", "Mm": "matmul", "Mul": "×",
    "Mv": "matmul", "NativeBatchNorm": "batch norm", "NativeDropout": "dropout", "NativeGroupNorm": "group norm",
    "NativeLayerNorm": "layer norm", "Neg": "−", "Pow": "power", "Rsub": "1 −", "Sub": "−", "Std": "std",
    "UpsampleBilinear2D": "upsample", "UpsampleNearest2D": "upsample", "Var": "variance", "Where": "mask",
    "_Maximum": "max",  # of `attn_lib.ops`
}

SYMMETRIES_SAID = {
    "channel_permutation": "permuting channels", "spatial_permutation": "permuting positions",
    "row_column_permutation": "permuting rows and columns", "translation": "shifting", "flip_h": "flipping up-down",
    "flip_w": "flipping left-right", "transpose": "transposing", "scaling": "scaling",
}

_BY_CONSTANT = {"Add": "shift", "Sub": "shift", "Mul": "scale", "Div": "scale"}
_REDUCTIONS = ("Amax", "Amin", "Mean", "Std", "Sum", "Var", "_Maximum")

_GREEK = {  # `lambda` is no name in Python, hence `lam`
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "zeta": "ζ", "eta": "η", "theta": "θ",
    "kappa": "κ", "lambda": "λ", "lam": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ",
    "tau": "τ", "phi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ",
    "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω",
}
_SUBSCRIPT = dict(zip("0123456789aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))


def symbol(word: str) -> str:
    """A name as it is printed: Greek letters, primes, and a letter after `_` or digits at the end as subscripts."""
    word = word.replace("''", "″").replace("'", "′")
    stem = word.rstrip("0123456789")
    digits = word[len(stem):]
    base, _, index = stem.partition("_")
    if index in _SUBSCRIPT:
        stem = _GREEK.get(base, base) + _SUBSCRIPT[index]
    return _GREEK.get(stem, stem) + "".join(_SUBSCRIPT[d] for d in digits)


def printed(name: str) -> str:
    """A tap's name as it is printed; a name that occurs again ("A:2") carries its number in brackets."""
    base, _, count = name.partition(":")
    *path, last = base.split(".")
    return ".".join([*path, symbol(last)]) + (f" ({count})" if count else "")


def parameter(path: str) -> str:
    """A parameter's symbol: `W1.weight` and `W1.bias` are W₁, `gamma` is γ, `mlp.0.weight` is mlp₀.

    "" for `convs.0.1.weight`: a number in a list in a list is no name.
    """
    parts = path.split(".")
    if len(parts) > 1 and parts[-1] in ("weight", "bias"):
        parts.pop()
    if all(part.isdigit() for part in parts[-2:]):
        return ""
    return symbol("".join(parts[-2:]) if parts[-1].isdigit() else parts[-1])


def at_limits(entry: catalog.Entry) -> str:
    """What a module becomes at its limits; another module goes by its name."""
    modules = catalog.list_modules()
    return "; ".join(f"{catalog.entry(what).name if what in modules else what} ({when})"
                     for what, when in entry.reduces_to.items())


def bare(fn: Any) -> str:
    """An autograd node's operation: "Mul" for MulBackward0."""
    return re.sub(r"Backward\d*$", "", fn.name())


def silent(fn: Any) -> bool:
    """Whether an operation only moves entries."""
    return bare(fn) in _SILENT


def spell(
    functions: Sequence[Any], used: Mapping[Any, Sequence[str]], axes: Mapping[Any, Sequence[str]],
    result: Sequence[str],
) -> str:
    """Operations in words, in order: "linear W₁, relu, linear W₂, sigmoid".

    Args:
        functions: autograd nodes, first to last.
        used: node → symbols of the parameters that enter there.
        axes: node → axes of the tensor it takes in, where they have names.
        result: axes of the tensor that comes out at the end.
    """
    words: list[str] = []
    for i, fn in enumerate(functions):
        operation, parameters = bare(fn), ", ".join(dict.fromkeys(filter(None, used[fn])))
        if operation in _SILENT and not used[fn]:
            continue
        if operation in _BY_CONSTANT and sum(parent is not None for parent, _ in fn.next_functions) == 1:
            word = _BY_CONSTANT[operation]
            if words and words[-1] in ("scale", "shift", "rescale"):
                word = word if words.pop() == word else "rescale"
        else:
            word = _SPOKEN.get(operation) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", operation).lower()
            word = "linear" if word == "matmul" and used[fn] else word
            ends = i == len(functions) - 1
            word += _over(fn, axes.get(fn, ()) if operation in _REDUCTIONS else result if ends else ())
            said = parameters in ("", word) or word.endswith(f" {parameters}")  # "batch norm" of a layer `norm`
            word += "" if said else f" {parameters}"
        if not words or words[-1] != word:
            words.append(word)
    return ", ".join(words)


def _over(fn: Any, axes: Sequence[str]) -> str:
    """" over H, W" for a reduction or a softmax along axes that have names, else nothing."""
    saved = getattr(fn, "_saved_dim", getattr(fn, "dim", None))  # a function of `attn_lib.ops` keeps `dim`
    dims = saved if bare(fn) in (*_REDUCTIONS, "Softmax") else None
    if dims is None or not axes:
        return ""
    dims = [dims] if isinstance(dims, int) else list(dims)
    dims = [d - 2**64 if d >= 2**63 else d for d in dims]  # autograd keeps −1 as an unsigned number
    if any(not -len(axes) <= d < len(axes) for d in dims):
        return ""
    return " over " + ", ".join(axes[d].replace("-", "−") for d in dims)

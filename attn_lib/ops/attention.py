"""Softmax attention."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..checks import check_divisible
from ..tap import recording, tap, tracing
from .precision import in_float32


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, bias: Tensor | None = None,
           name: str = "A", dims: str = "") -> Tensor:
    """Softmax attention softmax(scale · q kᵀ + bias) v.

    By `F.scaled_dot_product_attention`: no attention matrix exists where torch has a fused kernel for the device
    and the shapes; on a CPU it has none for a bias that learns, and in windows of no more pixels than v has
    channels products are faster, and keep no more. Inside a trace the matrix is made, and recorded under
    `name`; in half precision it is made in float32, as the kernels do within.

    The fused kernels know no second derivative: a backward pass with `create_graph=True` computes the first anew, from
    products, which costs an attention matrix; where torch wraps its kernel in other steps (heads whose width it pads,
    on CUDA) it still says "not implemented", and `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` around the forward
    pass is the way. Under `torch.func` (vmap, jvp, hessian) products are taken throughout.

    Args:
        q: queries (…, N, d).
        k: keys (…, Nk, d).
        v: values (…, Nk, dv).
        scale: factor of the logits; 1/√d when None.
        bias: added to the logits, broadcast to (…, N, Nk); −inf forbids a pair, but never a whole row.
        name, dims: of the tap, see `tap.tap`.

    Returns:
        (…, N, dv)
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k_T = k.transpose(-2, -1)
    if tracing():
        return tap(name, _weights(in_float32(torch.matmul, q, k_T) * scale, bias), dims).to(v.dtype) @ v
    if recording():  # under checkpointing: the matrix is shown, but y does not come from it
        with torch.no_grad():
            tap(name, _weights(in_float32(torch.matmul, q, k_T) * scale, bias), dims)
    learned = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    slower = q.device.type in ("cpu", "meta") and (learned or _narrow(q, k, v))
    if slower or _transformed(q, k, v):
        q = q if scale == 1 else q * scale
        return _weights(in_float32(torch.matmul, q, k_T), bias).to(v.dtype) @ v
    return _fused(q, k, v, scale, bias)


def _narrow(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the matrix is no larger than y, which fused kernels keep in its place, and products are not slower.

    Not for the compiler, to which sizes may be unknown, and not in half precision, where q and k would be copied.
    """
    N, D, E = q.shape[-2], q.shape[-1], v.shape[-1]
    return (not torch.compiler.is_compiling() and q.dtype in (torch.float32, torch.float64)
            and k.shape[-2] <= E and 1 < N and (N <= E or D < E))


def _transformed(*tensors: Tensor) -> bool:
    """Whether a transform of `torch.func` is under way, whose derivatives and batches the fused kernels do not know."""
    return not torch.compiler.is_compiling() and any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))


def _weights(logits: Tensor, bias: Tensor | None) -> Tensor:
    return (logits if bias is None else logits + bias).softmax(-1)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """`F.scaled_dot_product_attention` with what its fused kernels want: four axes, D = E, vectors in one piece."""
    D, E = q.shape[-1], v.shape[-1]
    if E < D:
        return _fused(q, k, F.pad(v, (0, D - E)), scale, bias)[..., :E]
    if D < E:
        return _fused(F.pad(q, (0, E - D)), F.pad(k, (0, E - D)), v, scale, bias)
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    if q.ndim == 4:
        return _kernel(q, k, v, scale, bias)
    lead, pairs = q.shape[:-2], (q.shape[-2], k.shape[-2])
    if bias is not None and bias.ndim > 2:
        bias = bias.expand(*lead, *pairs).reshape(-1, lead[-1], *pairs)
    q, k, v = (t.reshape(-1, lead[-1], *t.shape[-2:]) for t in (q, k, v))  # two axes: CUDA has 65,535 blocks in each
    y = _kernel(q, k, v, scale, bias)
    return y.reshape(*lead, *y.shape[-2:])


def _kernel(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """`F.scaled_dot_product_attention`, whose gradient is finite and can be differentiated again."""
    with _finite_backward(q, k, v, bias):
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    if not torch.compiler.is_compiling() and y.grad_fn is not None and y.grad_fn.name().startswith("ScaledDotProduct"):
        y.grad_fn.register_hook(_differentiable)
    return y


def _finite_backward(q: Tensor, *others: Tensor | None) -> AbstractContextManager[None]:
    """Within it, what will be differentiated on a GPU is left to the kernels that are not cuDNN's.

    Of 64 keys beyond a multiple of 128 (a map of 56 × 56), cuDNN's backward pass in half precision makes the gradient
    of a query NaN whose logits are all so low that log Σ exp is below −88.7 (on an H100, with cuDNN 9.19).
    github.com/pytorch/pytorch/issues/196678 reports it with a mask only; it happens without one too.
    """
    asked = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (q, *others))
    if not asked or q.device.type != "cuda":
        return nullcontext()
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if not torch.compiler.is_compiling():  # the compiler cannot ask what the caller allows
        allowed = (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled())
        kernels = [kernel for kernel, is_allowed in zip(kernels, allowed, strict=True) if is_allowed]
    return sdpa_kernel(kernels) if kernels else nullcontext()


def _differentiable(gradients: tuple[Tensor | None, ...], incoming: tuple[Tensor, ...]) -> Any:
    """The gradients of q, k, v and perhaps a bias once more, from products, where they will be differentiated."""
    if not torch.is_grad_enabled():
        return None
    node: Any = torch._C._current_autograd_node()  # it holds q, k and v anyway: held here they would outlive their use
    bias = next((getattr(node, name) for name in ("_saved_attn_mask", "_saved_attn_bias") if hasattr(node, name)), None)
    given = [t for t in (node._saved_query, node._saved_key, node._saved_value, bias) if t is not None]
    q, k, v, *bias = own = [t.view_as(t) for t in given]  # q may be k: each has a gradient of its own
    A = _weights(in_float32(torch.matmul, q, k.transpose(-2, -1)) * node._saved_scale, *(bias or [None]))
    wanted = [i for i, t in enumerate(own) if t.requires_grad]
    found = torch.autograd.grad(A.to(v.dtype) @ v, [own[i] for i in wanted], incoming[0], create_graph=True)
    return tuple(found[wanted.index(i)] if i in wanted else None for i in range(len(gradients)))


class SelfAttention(nn.Module):
    """Multi-head self-attention of tokens: y = W_o [y_1; …; y_h] with y_i = softmax(q_i k_iᵀ / √d) v_i, d = C/h.

    q, k and v are linear layers of the tokens, cut into h heads. Blocks of several papers hold one.

    Args:
        channels: C.
        heads: h, divides C.
        qkv_bias: whether W_q, W_k and W_v have a bias; W_o has one.

    Shape:
        x (…, N, C) → y (…, N, C).
    """

    def __init__(self, channels: int, heads: int, *, qkv_bias: bool = True):
        super().__init__()
        check_divisible("channels", channels, "heads", heads)
        self.heads = heads
        self.Wq, self.Wk, self.Wv = (nn.Linear(channels, channels, bias=qkv_bias) for _ in range(3))
        self.Wo = nn.Linear(channels, channels)

    def forward(self, x: Tensor, *, bias: Tensor | None = None, dims: str = "B N") -> Tensor:
        """y; `bias` as in `attend`, `dims` the axes of x but the last, for the taps q, k, v and A."""
        lead, _, N = dims.rpartition(" ")
        q, k, v = (tap(name, rearrange(W(x), "... N (h d) -> ... h N d", h=self.heads), f"{lead} h {N} d")
                   for name, W in (("q", self.Wq), ("k", self.Wk), ("v", self.Wv)))
        y = attend(q, k, v, bias=bias, dims=f"{lead} h {N} {N}")
        return self.Wo(rearrange(y, "... h N d -> ... N (h d)"))

    def extra_repr(self) -> str:
        return f"heads={self.heads}"

"""Tensor operations that several modules share: attention, positions, windows, neighbourhoods, pooling, sampling."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .checks import check_divisible, check_tensor
from .tap import recording, tap, tracing

# ---- half precision --------------------------------------------------------------------------------------------------

_HALF = (torch.float16, torch.bfloat16)
# Asked here: torch.compile of the oldest torch cannot ask, and `is_autocast_enabled` refuses other devices (meta).
_AUTOCAST = tuple(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu")))


def in_float32(fn: Callable[..., Tensor], *args: Any) -> Tensor:
    """`fn(*args)` with its tensors in float32 at least, under autocast as well.

    For products of features: float16 ends at 65,504, which two vectors of a trained network exceed, and bfloat16
    has three digits. In float32 outside autocast this is the plain call.
    """
    args = [t.float() if isinstance(t, Tensor) and t.dtype in _HALF else t for t in args]
    device = next(t.device.type for t in args if isinstance(t, Tensor))
    if device not in _AUTOCAST or not torch.is_autocast_enabled(device):
        return fn(*args)
    with torch.autocast(device, enabled=False):
        return fn(*args)


# ---- softmax attention -----------------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, bias: Tensor | None = None,
           name: str = "A", dims: str = "") -> Tensor:
    """Softmax attention softmax(scale · q kᵀ + bias) v.

    By `F.scaled_dot_product_attention`: no attention matrix exists where torch has a fused kernel for the device
    and the shapes; on a CPU it has none for a bias that learns. Inside a trace the matrix is made, and recorded
    under `name`; in half precision it is made in float32, as the kernels do within.

    Args:
        q: queries (…, N, D).
        k: keys (…, M, D).
        v: values (…, M, E).
        scale: factor of the logits; 1/√D when None.
        bias: added to the logits, broadcast to (…, N, M); −inf forbids a pair, but never a whole row.
        name, dims: of the tap, see `tap.tap`.

    Returns:
        (…, N, E)
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k_T = k.transpose(-2, -1)
    if tracing():
        return tap(name, _weights(in_float32(torch.matmul, q, k_T) * scale, bias), dims).to(v.dtype) @ v
    if recording():  # under checkpointing: the matrix is shown, but y does not come from it
        with torch.no_grad():
            tap(name, _weights(in_float32(torch.matmul, q, k_T) * scale, bias), dims)
    if q.device.type == "cpu" and bias is not None and bias.requires_grad and torch.is_grad_enabled():
        return _weights(in_float32(torch.matmul, q * scale, k_T), bias).to(v.dtype) @ v  # torch's fallback is slower
    return _fused(q, k, v, scale, bias)


def _weights(logits: Tensor, bias: Tensor | None) -> Tensor:
    return (logits if bias is None else logits + bias).softmax(-1)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """`F.scaled_dot_product_attention` with what its fused kernels want: four axes, D = E, vectors in one piece."""
    D, E = q.shape[-1], v.shape[-1]
    if E < D:
        return _fused(q, k, F.pad(v, (0, D - E)), scale, bias)[..., :E]
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    if q.ndim == 4:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    lead, pairs = q.shape[:-2], (q.shape[-2], k.shape[-2])
    if bias is not None and bias.ndim > 2:
        bias = bias.expand(*lead, *pairs).reshape(-1, 1, *pairs)
    q, k, v = (t.reshape(-1, 1, *t.shape[-2:]) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return y.reshape(*lead, *y.shape[-2:])


# ---- positions -------------------------------------------------------------------------------------------------------


def relative_logits(q: Tensor, table: Tensor) -> Tensor:
    """Logits of relative positions along one axis: q_i · r_{j−i}.

    Only the N·(N+M−1) products of queries and offsets are made, never the N·M·D vectors that they belong to.

    Args:
        q: queries (…, N, D).
        table: r (N+M−1, D), a vector for each offset j − i of N queries and M keys, from −(N−1) to M−1.

    Returns:
        (…, N, M)
    """
    N, M = q.shape[-2], table.shape[0] - q.shape[-2] + 1
    products = q @ table.transpose(-2, -1)  # (…, N, N+M−1): every query with every offset
    i, j = torch.arange(N, device=q.device)[:, None], torch.arange(M, device=q.device)
    return products.gather(-1, (j - i + N - 1).expand(*products.shape[:-1], M))


def relative_bias(table: Tensor, H: int, W: int) -> Tensor:
    """A learned number for every pair of pixels that depends on their offset alone.

    Args:
        table: (…, 2·H−1, 2·W−1), by offset key − query in rows and columns; the middle belongs to offset (0, 0).
        H, W: size of the feature map.

    Returns:
        (…, HW, HW), queries before keys, pixels row by row.

    Raises:
        ValueError: if the table has another size.
    """
    if table.shape[-2:] != (2 * H - 1, 2 * W - 1):
        shape = (2 * H - 1, 2 * W - 1)
        raise ValueError(f"table has shape {tuple(table.shape)}; its last two axes must be {shape} for H={H}, W={W}")
    y, x = torch.arange(H, device=table.device), torch.arange(W, device=table.device)
    rows, cols = y - y[:, None] + H - 1, x - x[:, None] + W - 1
    return table[..., rows[:, None, :, None], cols[None, :, None, :]].flatten(-4, -3).flatten(-2)


# ---- windows and neighbourhoods --------------------------------------------------------------------------------------


def pad_to_multiple(x: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """A feature map with zeros below and to the right, so that h divides its height and w its width.

    Returns:
        the padded map (B, C, H′, W′), and which of its pixels are real, (H′, W′) in bool.
    """
    H, W = x.shape[-2:]
    down, right = -H % h, -W % w
    real = torch.ones(H, W, dtype=torch.bool, device=x.device)
    return F.pad(x, (0, right, 0, down)), F.pad(real, (0, right, 0, down))


def windows(x: Tensor, h: int, w: int) -> Tensor:
    """A feature map cut into windows of h × w pixels: (B, C, H, W) → (B, H/h · W/w, h·w, C), all row by row.

    Raises:
        ValueError: if h does not divide H, or w does not divide W; see `pad_to_multiple`.
    """
    check_divisible("H", x.shape[2], "h", h)
    check_divisible("W", x.shape[3], "w", w)
    return rearrange(x, "B C (R h) (S w) -> B (R S) (h w) C", h=h, w=w)


def unwindows(x: Tensor, h: int, w: int, H: int, W: int) -> Tensor:
    """The feature map (B, C, H, W) of its windows (B, H/h · W/w, h·w, C): undoes `windows`."""
    return rearrange(x, "B (R S) (h w) C -> B C (R h) (S w)", R=H // h, S=W // w, h=h, w=w)


def neighbourhoods(x: Tensor, kernel_size: tuple[int, int], dilation: int = 1) -> tuple[Tensor, Tensor]:
    """The K = kH·kW neighbours of every pixel, itself in the middle.

    Neighbours outside the map are zeros. A softmax has to mask them by the second output: a zero is a key like
    any other, and takes its share.

    Args:
        x: feature map (B, C, H, W).
        kernel_size: (kH, kW), both odd.
        dilation: distance between neighbours in pixels.

    Returns:
        (B, C, K, H, W), neighbours row by row, and which of them lie on the map, (K, H, W) in bool.
    """
    B, C, H, W = x.shape
    padding = tuple(dilation * (k // 2) for k in kernel_size)
    on_map = F.pad(torch.ones(H, W, dtype=torch.bool, device=x.device), (padding[1],) * 2 + (padding[0],) * 2)
    rows, cols = (torch.arange(k, device=x.device)[:, None] * dilation + torch.arange(n, device=x.device)
                  for k, n in zip(kernel_size, (H, W), strict=True))
    on_map = on_map[rows[:, None, :, None], cols[None, :, None, :]].flatten(0, 1)
    return F.unfold(x, kernel_size, dilation, padding).view(B, C, -1, H, W), on_map


# ---- pooling along axes ----------------------------------------------------------------------------------------------


def mean_and_max(x: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and maximum of x over the axes `dim`, which stay with size 1.

    Where several entries tie for the maximum, its gradient is divided among them.
    """
    return x.mean(dim, keepdim=True), x.amax(dim, keepdim=True)


def strip_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means along the rows and along the columns of a feature map (B, C, H, W): (B, C, H) and (B, C, W)."""
    return x.mean(3), x.mean(2)


# ---- sampling --------------------------------------------------------------------------------------------------------


def bilinear_sample(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """x at positions between its pixels: x(p) = Σ_q G(q, p) · x(q), and zero outside the image.

    G(q, p) = g(q_row, p_row) · g(q_col, p_col) with g(a, b) = max(0, 1 − |a − b|): up to four pixels q count
    for a position p. Gradients reach x and the positions. On a pixel, where G has a kink, the gradient with
    respect to the position is the forward difference, whatever the size of the image.

    Args:
        x: feature map (B, C, H, W).
        rows, cols: positions in pixels, (B, *S) each; (0, 0) is the centre of the first pixel.

    Returns:
        (B, C, *S)

    Raises:
        ValueError: if rows and cols have not the same shape, or another batch size than x.
    """
    B, C, H, W = check_tensor(x, "B C H W").shape
    if rows.shape != cols.shape or rows.shape[:1] != x.shape[:1]:
        shapes = f"rows {tuple(rows.shape)} and cols {tuple(cols.shape)}"
        raise ValueError(f"{shapes} must have the same shape (B, …) with B={B}, the batch of x")
    # F.grid_sample wants positions as fractions of the image. Dividing by a power of two is exact, dividing
    # by W is not; so x is widened with the zeros that lie outside it anyway: whole positions hit their pixel.
    # Half precision cannot tell the pixels of a wide image apart, so none of this is done in it.
    dtype = torch.promote_types(x.dtype, torch.float32)
    tall, wide = _power_of_two(H), _power_of_two(W)
    grid = torch.stack([(cols.to(dtype) + 0.5) * (2 / wide) - 1, (rows.to(dtype) + 0.5) * (2 / tall) - 1], -1)
    y = F.grid_sample(F.pad(x.to(dtype), (0, wide - W, 0, tall - H)), grid.flatten(1, -2)[:, None],
                      mode="bilinear", padding_mode="zeros", align_corners=False)
    return y.reshape(B, C, *rows.shape[1:]).to(x.dtype)


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n (n.bit_length() would not compile for a dynamic n)."""
    power = 1
    while power < n:
        power *= 2
    return power

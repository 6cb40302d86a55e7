"""Relative positions: logits and biases that depend on an offset."""

import torch
from torch import Tensor


def relative_logits(q: Tensor, table: Tensor, stride: int = 1) -> Tensor:
    """Logits of relative positions along one axis: q_i · r_{j−s·i}.

    Only the N·(s·(N−1)+Nk) products of queries and offsets are made, never the N·Nk·d vectors that they belong to.

    Args:
        q: queries (…, N, d).
        table: r (s·(N−1)+Nk, d), a vector for each offset j − s·i of N queries and Nk keys, from −s·(N−1) to Nk−1.
        stride: s, how many keys lie from one query to the next.

    Returns:
        (…, N, Nk)
    """
    N = q.shape[-2]
    before = stride * (N - 1)  # offsets below 0
    Nk = table.shape[0] - before
    products = q @ table.transpose(-2, -1)  # (…, N, s·(N−1)+Nk): every query with every offset
    i, j = torch.arange(N, device=q.device)[:, None], torch.arange(Nk, device=q.device)
    return products.gather(-1, (j - stride * i + before).expand(*products.shape[:-1], Nk))


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

"""What several tasks are made of: sheets of cells, layers that read a cell, and the share of right answers."""

from einops import rearrange
from torch import Tensor, nn

CELL = 10  # pixels of a cell: an 8 × 8 digit with a margin of one


def sheet(cells: Tensor) -> Tensor:
    """Cells `(…, H, W, y, x)` in rows and columns as one picture `(…, H · y, W · x)`."""
    return rearrange(cells, "... H W y x -> ... (H y) (W x)")


def cell_layers(channels: int) -> nn.Sequential:
    """Two layers that see one cell at a time: sheets `(B, 1, 10 H, 10 W)` → features `(B, channels, H, W)`."""
    return nn.Sequential(nn.Conv2d(1, 64, CELL, stride=CELL), nn.ReLU(), nn.Conv2d(64, channels, 1))


def share_right(answers: Tensor, truth: Tensor, where: Tensor) -> float:
    """The share of positions that answer rightly.

    Args:
        answers: class scores `(n, K, …)`.
        truth: `(n, …)`.
        where: `(n, …)`, bool: the positions that count.
    """
    return (answers.argmax(1) == truth)[where].float().mean().item()

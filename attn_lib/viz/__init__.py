"""Figures and kernel-free explorers. Each answers the question in its title and carries alternative text."""

from .charts import bars, compare, curves, matrix
from .explore import Explorer, explore_attention, explore_frames, explore_pixels, explore_points
from .family_map import FamilyMap, family_map
from .figures import Figure
from .flow import flow
from .images import channels, images, overlay, points
from .scaling import scaling
from .style import FAMILY_COLOURS
from .timing import roofline, timing

__all__ = [
    "FAMILY_COLOURS",
    "Explorer",
    "FamilyMap",
    "Figure",
    "bars",
    "channels",
    "compare",
    "curves",
    "explore_attention",
    "explore_frames",
    "explore_pixels",
    "explore_points",
    "family_map",
    "flow",
    "images",
    "matrix",
    "overlay",
    "points",
    "roofline",
    "scaling",
    "timing",
]

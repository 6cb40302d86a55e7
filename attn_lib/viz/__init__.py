"""Figures and kernel-free explorers. Each answers the question in its title and carries alternative text.

    images, channels, overlay, points    photographs, feature maps, heat over a photograph, places on one
    bars, matrix, curves, compare        gates, attention matrices, training curves, scores of several models
    drawing                              a mechanism as small grids with their numbers (Grid, Dots) and arrows
    flow                                 what is computed from what inside a module, from its own trace
    scaling, timing, roofline            growth against theory, recorded times, how near they are to the limit
    family_map                           every module by family and year
    explore_attention, explore_pixels, explore_points, explore_frames
                                         the same under the reader's hand: a query, a pixel, an output, a slider

`attn_lib.card` is drawn here too.
"""

from .charts import bars, compare, curves, matrix
from .drawing import Dots, Drawing, Grid, drawing
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
    "Dots",
    "Drawing",
    "Explorer",
    "FamilyMap",
    "Figure",
    "Grid",
    "bars",
    "channels",
    "compare",
    "curves",
    "drawing",
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

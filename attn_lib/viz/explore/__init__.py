"""Explorers: figures that answer to mouse, finger and keyboard.

One call serves three readers. A static page gets self-contained HTML: a picture, the data and the script that brings
it to life, with no kernel and no network; where scripts are stripped, the picture stays. A running kernel adds
ipywidgets that recompute. A viewer without HTML gets the picture as a PNG with its alternative text.

    api      what a chapter calls
    panels   what is explored: heat maps, maps, sampling points
    frames   the same under sliders: at each setting a figure and a sentence
    scene    a photograph with panels, painted in Python
    page     the HTML, with explorer.js and explorer.css in it
    live     ipywidgets, where a kernel runs
"""

from .api import explore_attention, explore_frames, explore_pixels, explore_points
from .page import Explorer

__all__ = ["Explorer", "explore_attention", "explore_frames", "explore_pixels", "explore_points"]

"""What the tests of this room share."""

from importlib import import_module

import matplotlib
import pytest


@pytest.fixture
def texts(monkeypatch):
    """What a sheet says: every text that was drawn on the last one."""
    figures = import_module("attn_lib.viz.figures")
    said = []
    render = figures._render

    def spy(fig, *rest):
        said[:] = [t.get_text() for t in fig.findobj(matplotlib.text.Text) if t.get_text()]
        return render(fig, *rest)

    monkeypatch.setattr(figures, "_render", spy)
    return said

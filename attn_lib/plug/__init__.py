"""Putting a module into somebody else's network, and taking it out again.

    insert    a module after every sub-module whose name matches
    replace   every sub-module whose name matches, such as a convolution by its deformable form
    Report    what that did; `report.undo()` takes it back
    yolo      names for the YAML from which ultralytics builds its models; see `attn_lib.plug.yolo`

>>> report = plug.insert(resnet, "layer[1-4].*.bn3", "se", example=images)
>>> print(report)

Everything that is in the network keeps its name: `state_dict` gains keys and loses none.
"""

from .report import Report, Site
from .surgery import insert, replace

__all__ = ["Report", "Site", "insert", "replace"]

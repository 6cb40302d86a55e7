"""Putting a module into somebody else's network, and taking it out again.

    insert    a module after every sub-module whose name matches
    replace   every sub-module whose name matches, such as a convolution by its deformable form
    convert   the weights of timm's or torchvision's module, as a `state_dict` of ours
    Report    what that did; `report.undo()` takes it back

>>> report = plug.insert(resnet, "layer[1-4].*.bn3", "se", example=images)
>>> print(report)

Everything that is in the network keeps its name: `state_dict` gains keys and loses none.
"""

from .report import Report, Site
from .surgery import insert, replace
from .weights import convert

__all__ = ["Report", "Site", "convert", "insert", "replace"]

"""Putting a module into somebody else's network, and taking it out again.

    insert    a module after every sub-module whose name matches
    fuse      the output of one sub-module with that of another, or what the network's code merges
    merges    what that is: its concatenations and additions of maps, by index and name
    replace   every sub-module whose name matches, such as a convolution by its deformable form
    Report    what that did; `report.undo()` takes it back, `report.check()` looks whether it still stands
    inserted  what stands in a network, also in a copy, or after loading
    remove    all insertions out again, without a report
    convert   the weights of timm's or torchvision's module, as a `state_dict` of ours
    yolo      names for the YAML from which ultralytics builds its models; see `attn_lib.plug.yolo`

>>> report = plug.insert(resnet, "layer[1-4].*.bn3", "se", example=images)
>>> print(report)

Everything that is in the network keeps its name: `state_dict` gains keys and loses none.
"""

from .inventory import Inserted, inserted, remove
from .merges import Merge, Merges, merges
from .recipe import Place
from .report import Report, Site
from .surgery import fuse, insert, replace
from .weights import convert

__all__ = ["Inserted", "Merge", "Merges", "Place", "Report", "Site", "convert", "fuse", "insert", "inserted", "merges",
           "remove", "replace"]

"""Packages that hold the same operators by other hands. They are compared with, never used by the library."""

from types import ModuleType

from attn_lib.measure.counterparts import import_package


def reference(name: str) -> ModuleType:
    """Import a reference package, such as "timm.layers".

    They are part of the test environment (the extra "test"): where one is missing the test fails, and says so.
    """
    return import_package(name)

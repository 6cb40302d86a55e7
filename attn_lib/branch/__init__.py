"""Branch attention: which of several parallel paths answers."""

from .sk import SKAttention

__all__ = ["SKAttention"]

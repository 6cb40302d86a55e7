"""Branch attention: which of several parallel paths answers."""

__all__ = []

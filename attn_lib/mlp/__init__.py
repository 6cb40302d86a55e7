"""MLPs that mix along the axes of a feature map, with no attention matrix at all."""

__all__ = []

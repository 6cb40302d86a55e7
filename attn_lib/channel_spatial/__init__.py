"""Channel and spatial attention: which feature maps matter, and where."""

__all__ = []

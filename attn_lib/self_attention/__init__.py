"""Self-attention on feature maps: every position asks, and some or all of the others answer."""

__all__ = []

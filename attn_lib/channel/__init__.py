"""Channel attention: which feature maps matter, the same answer at every position."""

from .se import SEAttention

__all__ = ["SEAttention"]

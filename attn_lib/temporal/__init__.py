"""Temporal attention: which steps of a series matter to which."""

__all__ = []

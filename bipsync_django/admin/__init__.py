"""The admin: tokens to look at, never to edit, and no secret within reach."""

from .tokens import BipsyncTokenAdmin

__all__ = ["BipsyncTokenAdmin"]

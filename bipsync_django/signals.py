"""What a site may listen to. A receiver that fails is logged and changes nothing.

Every signal is sent with ``token`` (the ``BipsyncToken`` row) and with ``BipsyncToken`` as sender,
after the change is stored. No argument holds a secret.
"""

from django.dispatch import Signal

__all__ = [
    "connected",
    "disconnected",
    "needs_sign_in",
    "refresh_failed",
    "signed_in",
    "token_refreshed",
]

signed_in = Signal()
"""A person signed in with Bipsync. ``claims`` is the validated ``Claims``."""

connected = Signal()
"""A signed-in person connected their Bipsync account. ``claims`` is the validated ``Claims``."""

token_refreshed = Signal()
"""A new pair is stored and validated. ``claims`` is the validated ``Claims``.

While Bipsync's keys cannot be fetched a pair is stored and used; the signal is sent when a later
look at the pair has validated it.
"""

refresh_failed = Signal()
"""A refresh did not succeed and will be tried again. ``reason`` is a short code."""

needs_sign_in = Signal()
"""The grant is dead. ``reason`` is a short code."""

disconnected = Signal()
"""The grant was given up on this side and its pair erased."""

"""Django's cache, which may fail: whatever is in it can be found out anew."""

import logging
from collections.abc import Callable
from typing import TypeVar

__all__ = ["despite_errors"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


def despite_errors(ask_cache: Callable[[], T], otherwise: T, consequence: str) -> T:
    """Return what ``ask_cache`` does, or ``otherwise`` when the cache fails.

    ``consequence`` is what that means, for the log.
    """
    try:
        return ask_cache()
    except Exception as error:  # noqa: BLE001 - each cache server's client has errors of its own
        logger.warning("The cache failed (%s); %s.", type(error).__name__, consequence)
        return otherwise

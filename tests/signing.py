"""What tests do to the signing keys that this process remembers."""

from django.core.cache import cache

from bipsync_django.oauth import keys


def forget_keys() -> None:
    """Be a process that has just started, with an empty cache."""
    cache.clear()
    keys._parsed.clear()

"""Where a claim is found: the language of ``CLAIMS``, ``GROUPS``, ``STAFF`` and ``SUPERUSER``."""

from collections.abc import Mapping
from typing import Any

__all__ = ["ABSENT", "find"]

ABSENT = object()
"""What ``find`` returns for a claim that is not there; a claim that is there may be null."""


def find(claims: Mapping[str, Any], path: str) -> object:
    """Return the claim at a dotted path, or ``ABSENT``.

    A claim whose own name holds dots comes before nested ones.
    """
    if path in claims:
        return claims[path]
    value: object = claims
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return ABSENT
        value = value[name]
    return value

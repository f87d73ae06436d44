"""The people who can sign in to the simulated tenant, and the scopes they can be asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..scopes import in_english


@dataclass(frozen=True)
class SimulatedUser:
    """Somebody with an account at the simulated tenant.

    ``id`` is 24 hexadecimal digits and becomes the access token's ``sub``; ``extra`` holds
    further claims of the access token and wins over those derived from the other fields.
    """

    id: str
    name: str
    given_name: str
    family_name: str
    email: str
    extra: Mapping[str, object] = field(default_factory=dict)


DEFAULT_USERS = (
    SimulatedUser(
        "68b993fa85d14160d4030391", "Ada Lovelace", "Ada", "Lovelace", "ada@acme.example"
    ),
    SimulatedUser(
        "68b993fa85d14160d4030392", "Grace Hopper", "Grace", "Hopper", "grace@acme.example"
    ),
    SimulatedUser(
        "68b993fa85d14160d4030393", "Zoë Müller-Łukasz", "Zoë", "Müller-Łukasz", "zoe@acme.example"
    ),
)


def is_known_scope(scope: str) -> bool:
    """Return whether the provider has heard of ``scope``, whoever may be granted it."""
    return in_english(scope) is not None


def describe_scope(scope: str) -> str:
    """Return what ``scope`` allows, in the words of a consent page."""
    return in_english(scope) or scope

"""The people who can sign in to the simulated tenant, and the scopes they can be asked for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


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

SCOPES = {
    "attachments:read": "Read the files attached to research",
    "categories:read": "Read categories",
    "classifications:read": "Read classifications",
    "comments:read": "Read comments on research",
    "contacts:read": "Read contacts",
    "events:read": "Read calendar events",
    "external_ids:read": "Read identifiers from other systems",
    "fields:read": "Read field definitions",
    "groups:read": "Read groups and their members",
    "note_templates:read": "Read note templates",
    "pipelines:read": "Read pipelines",
    "projects:read": "Read projects",
    "research:read": "Read research notes",
    "tasks:read": "Read tasks",
    "users:read": "See who works here: names and e-mail addresses",
    "versions:read": "Read earlier versions of research",
    "rest_api:read": "Read your data through the REST API",
    "rest_api:fields:read": "Read field definitions through the REST API",
    "rest_api:write": "Change your data through the REST API",
}

_TEAM_SCOPE = re.compile(r"team_[0-9a-f]{24}")


def is_known_scope(scope: str) -> bool:
    """Return whether the provider has heard of ``scope``, whoever may be granted it."""
    return scope in SCOPES or _TEAM_SCOPE.fullmatch(scope) is not None


def describe_scope(scope: str) -> str:
    """Return what ``scope`` allows, in the words of a consent page."""
    return SCOPES.get(scope) or "Act for a whole team"

"""What Bipsync's scopes allow, in plain words.

Importing it needs no settings: the simulated Bipsync does so too.
"""

import re
from collections.abc import Iterable, Mapping

from django.utils.translation import gettext, gettext_noop

__all__ = ["SCOPES", "describe", "in_english"]

SCOPES: Mapping[str, str] = {
    "attachments:read": gettext_noop("Read the files attached to research"),
    "categories:read": gettext_noop("Read categories"),
    "classifications:read": gettext_noop("Read classifications"),
    "comments:read": gettext_noop("Read comments on research"),
    "contacts:read": gettext_noop("Read contacts"),
    "events:read": gettext_noop("Read calendar events"),
    "external_ids:read": gettext_noop("Read identifiers from other systems"),
    "fields:read": gettext_noop("Read field definitions"),
    "groups:read": gettext_noop("Read groups and their members"),
    "note_templates:read": gettext_noop("Read note templates"),
    "pipelines:read": gettext_noop("Read pipelines"),
    "projects:read": gettext_noop("Read projects"),
    "research:read": gettext_noop("Read research notes"),
    "tasks:read": gettext_noop("Read tasks"),
    "users:read": gettext_noop("See who works here: names and e-mail addresses"),
    "versions:read": gettext_noop("Read earlier versions of research"),
    "rest_api:read": gettext_noop("Read your data through the REST API"),
    "rest_api:fields:read": gettext_noop("Read field definitions through the REST API"),
    "rest_api:write": gettext_noop("Change your data through the REST API"),
}
_TEAM = re.compile(r"team_[0-9a-f]{24}")
_ACT_FOR_TEAM = gettext_noop("Act for a whole team")


def in_english(scope: str) -> str | None:
    """Return what ``scope`` allows, or ``None`` for one that nobody here has heard of."""
    return _ACT_FOR_TEAM if _TEAM.fullmatch(scope) else SCOPES.get(scope)


def describe(scopes: Iterable[str]) -> list[str]:
    """Return what ``scopes`` allow, in the reader's language; an unknown one is named as it is."""
    return [gettext(words) if (words := in_english(scope)) else scope for scope in sorted(scopes)]

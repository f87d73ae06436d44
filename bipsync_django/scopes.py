"""What Bipsync's scopes allow, in plain words.

Importing it needs no settings: the simulated Bipsync does so too.
"""

import re
from collections.abc import Iterable, Mapping

from django.utils.translation import gettext

__all__ = ["SCOPES", "describe", "in_english"]

# Marks a text for translators. Django's own marker would load the settings.
_ = str

SCOPES: Mapping[str, str] = {
    "attachments:read": _("Read the files attached to research"),
    "categories:read": _("Read categories"),
    "classifications:read": _("Read classifications"),
    "comments:read": _("Read comments on research"),
    "contacts:read": _("Read contacts"),
    "events:read": _("Read calendar events"),
    "external_ids:read": _("Read identifiers from other systems"),
    "fields:read": _("Read field definitions"),
    "groups:read": _("Read groups and their members"),
    "note_templates:read": _("Read note templates"),
    "pipelines:read": _("Read pipelines"),
    "projects:read": _("Read projects"),
    "research:read": _("Read research notes"),
    "tasks:read": _("Read tasks"),
    "users:read": _("See who works here: names and e-mail addresses"),
    "versions:read": _("Read earlier versions of research"),
    "rest_api:read": _("Read your data through the REST API"),
    "rest_api:fields:read": _("Read field definitions through the REST API"),
    "rest_api:write": _("Change your data through the REST API"),
}
_TEAM = re.compile(r"team_[0-9a-f]{24}")
_ACT_FOR_TEAM = _("Act for a whole team")


def in_english(scope: str) -> str | None:
    """Return what ``scope`` allows, or ``None`` for one that nobody here has heard of."""
    return _ACT_FOR_TEAM if _TEAM.fullmatch(scope) else SCOPES.get(scope)


def describe(scopes: Iterable[str]) -> list[str]:
    """Return what ``scopes`` allow, in the reader's language; an unknown one is named as it is."""
    return [gettext(words) if (words := in_english(scope)) else scope for scope in sorted(scopes)]

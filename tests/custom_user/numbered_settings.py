"""The same site with people who are known by a number."""

from tests.custom_user.settings import *  # noqa: F403
from tests.settings import BIPSYNC as _BIPSYNC

AUTH_USER_MODEL = "custom_user.Numbered"
BIPSYNC = _BIPSYNC

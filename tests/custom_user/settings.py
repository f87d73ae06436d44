"""The test site with people who are known by e-mail, on SQLite alone and without an admin."""

from tests.settings import *  # noqa: F403
from tests.settings import BIPSYNC as _BIPSYNC
from tests.settings import DATABASES as _DATABASES
from tests.settings import INSTALLED_APPS as _INSTALLED_APPS

INSTALLED_APPS = [
    "tests.custom_user",
    *(app for app in _INSTALLED_APPS if app != "django.contrib.admin"),
]
AUTH_USER_MODEL = "custom_user.Person"
ROOT_URLCONF = "tests.custom_user.urls"
DATABASES = {"default": _DATABASES["default"]}
BIPSYNC = {
    **_BIPSYNC,
    "CLAIMS": {"badge": "badge", "hired": "hired", "floor": "floor", "team": "team"},
}

"""The test site with django-hijack, on SQLite alone."""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES as _DATABASES
from tests.settings import INSTALLED_APPS as _INSTALLED_APPS
from tests.settings import MIDDLEWARE as _MIDDLEWARE

INSTALLED_APPS = [*_INSTALLED_APPS, "hijack"]
MIDDLEWARE = [*_MIDDLEWARE, "hijack.middleware.HijackUserMiddleware"]
ROOT_URLCONF = "tests.hijacked.urls"
DATABASES = {"default": _DATABASES["default"]}
# Otherwise django-hijack leads to where Django's logout does.
LOGOUT_REDIRECT_URL = "/"

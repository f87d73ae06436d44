"""Settings of the test site: a staff portal reduced to what the tests need."""

import os
from typing import Any

from tests import databases

SECRET_KEY = "test-only-" + "k" * 50
DEBUG = False
ALLOWED_HOSTS = ["testserver", "localhost", "127.0.0.1"]
USE_TZ = True
TIME_ZONE = "Europe/London"
STATIC_URL = "static/"
ROOT_URLCONF = "tests.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DATABASES = {"default": databases.sqlite(), **databases.servers()}
DATABASE_ROUTERS = ["tests.databases.Router"]

INSTALLED_APPS = [
    "bipsync_django",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "tests",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "bipsync_django.middleware.BipsyncSessionMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTHENTICATION_BACKENDS = [
    "bipsync_django.backends.BipsyncBackend",
    "django.contrib.auth.backends.ModelBackend",
]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Where Django 6.1 looks; EMAIL_BACKEND before.
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
LOGIN_URL = "bipsync:login"
LOGIN_REDIRECT_URL = "/"
FIELD_ENCRYPTION_KEY = "dGVzdC1vbmx5LWtleS10ZXN0LW9ubHkta2V5LTEyMzQ="

BIPSYNC: dict[str, Any] = {
    "CLIENT": "acme",
    "CLIENT_ID": "portal",
    "CLIENT_SECRET": os.environ.get("TEST_CLIENT_SECRET", "portal-secret"),
    "SCOPES": ["users:read"],
    "ALLOW_INSECURE_LOOPBACK": True,
}
if simulator := os.environ.get("TEST_BIPSYNC"):
    BIPSYNC |= {
        "AUTHORIZE_URL": f"{simulator}/oauth/authorize",
        "TOKEN_URL": f"{simulator}/v1/oauth/token",
        "JWKS_URL": f"{simulator}/v1/oauth/jwks",
        "API_URL": simulator,
    }

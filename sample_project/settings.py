"""Settings of the sample portal, as a site would write them.

Four things differ between runs and come from the environment, where ``sample_project.demo`` puts
them: PORTAL_DATA (a folder), PORTAL_PORT, PORTAL_BIPSYNC_URL and PORTAL_BEAT_SECONDS. Without
them ``manage.py`` works on the data of ``make demo``.
"""

import os
import secrets

from cryptography.fernet import Fernet

from bipsync_django.schedule import BEAT_SCHEDULE
from bipsync_django.secret_sources import secret

from .local import folder, secret_file

PORT = os.environ.get("PORTAL_PORT", "8000")
BIPSYNC_URL = os.environ.get("PORTAL_BIPSYNC_URL", "http://127.0.0.1:8010")
BEAT_SECONDS = float(os.environ.get("PORTAL_BEAT_SECONDS", "5"))

# --- secrets: a site has these in a secret store; here they are made on first use

SECRET_KEY = secret(f"file:{secret_file('secret-key', lambda: secrets.token_urlsafe(50))}")
FIELD_ENCRYPTION_KEY = secret(
    f"file:{secret_file('field-encryption-key', lambda: Fernet.generate_key().decode())}"
)

# --- Bipsync

BIPSYNC = {
    "CLIENT": "acme",
    "CLIENT_ID": "portal",
    "CLIENT_SECRET": f"file:{secret_file('client-secret', secrets.token_urlsafe)}",
    "SCOPES": ["users:read", "research:read"],
    # A site leaves these out: they follow from CLIENT. Here they lead to the simulated Bipsync.
    "WEB_URL": BIPSYNC_URL,
    "API_URL": BIPSYNC_URL,
    "ALLOW_INSECURE_LOOPBACK": True,
}
AUTHENTICATION_BACKENDS = [
    "bipsync_django.backends.BipsyncBackend",
    # For the local administrator, who signs in to the admin with a password.
    "django.contrib.auth.backends.ModelBackend",
]
LOGIN_URL = "front"
LOGIN_REDIRECT_URL = "front"

# --- Django

# The demonstration shows the portal as visitors see it, so it switches this off.
DEBUG = os.environ.get("PORTAL_DEBUG", "1") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
INSTALLED_APPS = [
    # Before the apps whose templates it brings into the portal's own look.
    "sample_project",
    "bipsync_django",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    # Before the next one, which then sees that a session has ended.
    "bipsync_django.middleware.BipsyncSessionMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "sample_project.urls"
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
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": folder() / "portal.sqlite3",
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 10,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# Browsers share cookies between all ports of a host, and so between two portals on this machine.
SESSION_COOKIE_NAME = f"portal-{PORT}-session"
CSRF_COOKIE_NAME = f"portal-{PORT}-csrf"
STATIC_URL = "/static/"
LANGUAGE_CODE = "en-gb"
TIME_ZONE = "Europe/London"
USE_TZ = True

# --- Celery, without a server of any kind

CELERY_BROKER_URL = "filesystem://localhost"
CELERY_BROKER_TRANSPORT = "bipsync_django.testing.broker:Transport"
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "data_folder_in": str(folder("queue")),
    "data_folder_out": str(folder("queue")),
    "control_folder": str(folder("exchanges")),
    "polling_interval": 0.25,
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_DB_REUSE_MAX = 1000
CELERY_BEAT_SCHEDULE_FILENAME = str(folder() / "beat-schedule")
_REFRESH = "bipsync-refresh-due-tokens"
# A site writes {**BEAT_SCHEDULE, ...}: once a minute does for tokens that live for an hour.
CELERY_BEAT_SCHEDULE = {
    **BEAT_SCHEDULE,
    _REFRESH: {**BEAT_SCHEDULE[_REFRESH], "schedule": BEAT_SECONDS},
}
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_REDIRECT_STDOUTS = False

# --- logging

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "style": "{",
            "format": "{asctime} {levelname} {name}: {message}",
            "datefmt": "%H:%M:%S",
        }
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        "portal": {"level": "INFO"},
        "bipsync_django": {"level": "INFO"},
        # Its lines show whole URLs, and the callback's holds an authorization code.
        "django.server": {"handlers": [], "level": "CRITICAL", "propagate": False},
    },
}

"""The portal as an app: it keeps a log, in plain words, of what happens to people's connections."""

import logging
from typing import Any

from django.apps import AppConfig
from django.contrib.auth.models import AbstractBaseUser
from django.contrib.auth.signals import user_logged_in, user_logged_out

logger = logging.getLogger("portal.activity")


class PortalConfig(AppConfig):
    name = "sample_project"
    verbose_name = "Portal"

    def ready(self) -> None:
        from bipsync_django import signals

        for signal, receiver in (
            (signals.signed_in, _signed_in),
            (signals.token_refreshed, _refreshed),
            (signals.refresh_failed, _refresh_failed),
            (signals.needs_sign_in, _needs_sign_in),
            (signals.disconnected, _disconnected),
            (user_logged_in, _password_used),
            (user_logged_out, _signed_out),
        ):
            signal.connect(receiver, dispatch_uid=f"portal.{receiver.__name__}")


def _name(user: Any) -> str:
    if not isinstance(user, AbstractBaseUser):
        return "Somebody"
    full_name = getattr(user, "get_full_name", lambda: "")()
    return full_name or user.get_username()


def _signed_in(token: Any, **kwargs: Any) -> None:
    logger.info("%s signed in with Bipsync.", _name(token.user))


def _refreshed(token: Any, **kwargs: Any) -> None:
    seconds = round((token.access_expires_at - token.obtained_at).total_seconds())
    logger.info("%s's access was renewed, for %s seconds.", _name(token.user), seconds)


def _refresh_failed(token: Any, reason: str, **kwargs: Any) -> None:
    from bipsync_django.errors import explain

    logger.warning(
        "%s's access could not be renewed; it will be tried again. %s",
        _name(token.user),
        explain(reason),
    )


def _needs_sign_in(token: Any, reason: str, **kwargs: Any) -> None:
    from bipsync_django.errors import explain

    logger.warning("%s has to sign in again. %s", _name(token.user), explain(reason))


def _disconnected(token: Any, **kwargs: Any) -> None:
    logger.info("%s was disconnected from Bipsync.", _name(token.user))


def _password_used(user: Any, **kwargs: Any) -> None:
    if user.has_usable_password():
        logger.info("%s signed in with a password.", _name(user))


def _signed_out(user: Any, **kwargs: Any) -> None:
    if user is not None:
        logger.info("%s signed out.", _name(user))

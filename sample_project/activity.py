"""The portal's log, in plain words, of what happens to people's connections."""

import logging
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.dispatch import receiver

from bipsync_django import signals
from bipsync_django.errors import explain
from bipsync_django.models import BipsyncToken

logger = logging.getLogger("portal.activity")


@receiver(signals.signed_in)
def _signed_in(token: BipsyncToken, **kwargs: Any) -> None:
    logger.info("%s signed in with Bipsync.", _name(token.user))


@receiver(signals.token_refreshed)
def _refreshed(token: BipsyncToken, **kwargs: Any) -> None:
    logger.info("%s's connection was renewed.", _name(token.user))


@receiver(signals.refresh_failed)
def _refresh_failed(token: BipsyncToken, reason: str, **kwargs: Any) -> None:
    logger.warning(
        "%s's connection could not be renewed; it will be tried again. %s",
        _name(token.user),
        explain(reason),
    )


@receiver(signals.needs_sign_in)
def _needs_sign_in(token: BipsyncToken, reason: str, **kwargs: Any) -> None:
    logger.warning("%s has to sign in again. %s", _name(token.user), explain(reason))


@receiver(signals.disconnected)
def _disconnected(token: BipsyncToken, **kwargs: Any) -> None:
    logger.info("%s was disconnected from Bipsync.", _name(token.user))


@receiver(user_logged_in)
def _logged_in(user: AbstractBaseUser, **kwargs: Any) -> None:
    if user.has_usable_password():
        logger.info("%s signed in with a password.", _name(user))


@receiver(user_logged_out)
def _logged_out(user: AbstractBaseUser | None, **kwargs: Any) -> None:
    if user is not None:
        logger.info("%s signed out.", _name(user))


def _name(user: AbstractBaseUser | None) -> str:
    if user is None:
        return "Somebody"
    full_name: str = getattr(user, "get_full_name", str)()
    return full_name or user.get_username()

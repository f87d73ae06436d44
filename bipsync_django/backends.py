"""The authentication backend."""

import logging
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import get_user_model, logout
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import AbstractBaseUser
from django.contrib.auth.signals import user_logged_in
from django.core.exceptions import MultipleObjectsReturned, PermissionDenied
from django.db import Error, models, transaction
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils import timezone
from django.utils.module_loading import import_string

from .conf import break_glass_users, get_tenant, is_sso_only
from .durable import database
from .exceptions import SignInRefused
from .lifecycle import Identity
from .models import BipsyncToken, TokenEvent
from .oauth.claims import Claims
from .signals import token_refreshed
from .users import SignIn, UserPolicy, Vouched

__all__ = [
    "BipsyncBackend",
    "SignIn",
    "Vouched",
    "apply_refreshed_claims",
    "is_bipsync_backend",
    "keep_access_reset",
    "require_break_glass",
    "site_backend",
]

logger = logging.getLogger(__name__)


class BipsyncBackend(UserPolicy, ModelBackend):
    """Signs in people whom Bipsync vouches for; permissions work as in ``ModelBackend``.

    Passwords are not looked at: keep ``ModelBackend`` in ``AUTHENTICATION_BACKENDS`` for those,
    behind this one, which with ``SSO_ONLY`` lets only ``BREAK_GLASS_USERS`` get to it.

    Subclass it to override ``is_allowed``, ``find_user``, ``reset_access``, ``create_user``,
    ``update_user``, ``impersonator`` or Django's own ``get_user``.
    """

    def authenticate(
        self,
        request: HttpRequest | None,
        username: str | None = None,
        password: str | None = None,
        *,
        bipsync: SignIn | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the user of a ``SignIn``, or ``None`` without one.

        Raises ``SignInRefused``; and ``PermissionDenied``, at which Django asks no other backend,
        for a password that ``SSO_ONLY`` does not let through.
        """
        if bipsync is None:
            _expect_no_password(request, username, password, kwargs)
            return None
        try:
            return self.resolve(bipsync)
        except PermissionDenied as error:
            # Django's authenticate() would turn it into "no backend took this".
            raise SignInRefused("not_allowed", "The policy raised PermissionDenied.") from error

    async def aauthenticate(
        self,
        request: HttpRequest | None,
        username: str | None = None,
        password: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """As ``authenticate``."""
        # ModelBackend's own would look at the password.
        return await sync_to_async(self.authenticate)(request, username, password, **kwargs)

    async def aget_user(self, user_id: Any) -> Any:
        """As ``get_user``, which a site may have overridden."""
        # ModelBackend's own would ask the database past it.
        return await sync_to_async(self.get_user)(user_id)


_LET_THROUGH = "_bipsync_break_glass"


def _expect_no_password(
    request: HttpRequest | None,
    username: str | None,
    password: str | None,
    credentials: Mapping[str, Any],
) -> None:
    """Raise ``PermissionDenied`` for a password that ``SSO_ONLY`` does not let through."""
    if password is None or not is_sso_only():
        return
    # Whatever a backend behind this one may take for a name has to be one of those.
    names = [name for name in (username, *credentials.values()) if name]
    if not names or not all(map(_is_break_glass_name, names)):
        # As long as the others' passwords take, or the few names that may have one could be told.
        get_user_model()().set_password(password)
        raise PermissionDenied("SSO_ONLY is set: people sign in with Bipsync.")
    if request is not None:
        setattr(_plain(request), _LET_THROUGH, True)


def _plain(request: HttpRequest) -> HttpRequest:
    """Return Django's own request, which Django REST framework wraps."""
    plain: HttpRequest = getattr(request, "_request", request)
    return plain


def _is_break_glass_name(name: object) -> bool:
    """Whether ``name`` is a break-glass user's, and no other user is found by it.

    A collation that ignores case or accents, or a manager that does, finds ``Émergency`` under the
    name ``emergency``.
    """
    if not isinstance(name, str) or name not in break_glass_users():
        return False
    people: Any = get_user_model()._default_manager
    try:
        user = people.get_by_natural_key(name)
    except get_user_model().DoesNotExist:
        # A backend that looks for people in its own way is checked in require_break_glass.
        return True
    except MultipleObjectsReturned:
        return False
    return bool(user.get_username() == name)


@receiver(user_logged_in)
def require_break_glass(
    *, request: HttpRequest | None, user: AbstractBaseUser, **kwargs: object
) -> None:
    """Log as an error that a break-glass user signs in with a password, so that somebody asks why.

    Raises ``PermissionDenied``, and ends the new session, if the password that ``SSO_ONLY`` let
    through for a break-glass name signs in another user.
    """
    if not is_sso_only() or is_bipsync_backend(getattr(user, "backend", "")):
        return
    if user.get_username() in break_glass_users():
        logger.error("The break-glass user with primary key %s signed in.", user.pk)
    elif request is not None and getattr(_plain(request), _LET_THROUGH, False):
        logger.error(
            "A break-glass name found the user with primary key %s, who has another name.", user.pk
        )
        logout(request)
        raise PermissionDenied("SSO_ONLY is set: people sign in with Bipsync.")


# How long a request may have been under way that read a user before a rule joined them.
_UNDER_WAY = timedelta(minutes=10)


@receiver(post_save)
def keep_access_reset(
    *,
    sender: type[models.Model],
    instance: Any,
    using: str,
    update_fields: Collection[str] | None = None,
    **kwargs: object,
) -> None:
    """Make a password unusable again that a request under way has written back.

    ``UserPolicy.reset_access`` has ended it when a rule joined the user to a person at Bipsync. A
    request that read the user before may save the old one afterwards, or a new one.
    """
    if not issubclass(sender, get_user_model()) or not instance.has_usable_password():
        return
    if update_fields is not None and "password" not in update_fields:
        return
    resets = TokenEvent.objects.using(database()).filter(
        name=TokenEvent.Name.MATCHED,
        reason="access_reset",
        actor_id=instance.pk,
        at__gte=timezone.now() - _UNDER_WAY,
    )
    try:
        with transaction.atomic(using=database()):
            # With a lock a transaction sees what was committed after it began.
            if not resets.select_for_update().values_list("pk", flat=True)[:1]:
                return
    except Error:  # not migrated yet
        return
    # Not on the instance: its request may be about to bind its session to the hash that it has.
    rows = sender._base_manager.using(using).filter(pk=instance.pk)
    rows.update(password=make_password(None))
    logger.error(
        "The user with primary key %s was joined to a Bipsync account a moment ago. A password "
        "that was saved since is not kept; set it once more in ten minutes.",
        instance.pk,
    )


def site_backend() -> type[BipsyncBackend] | None:
    """Return the site's own ``BipsyncBackend``, the first in ``AUTHENTICATION_BACKENDS``."""
    ours = filter(is_bipsync_backend, settings.AUTHENTICATION_BACKENDS)
    return next(map(import_string, ours), None)


def is_bipsync_backend(path: str) -> bool:
    """Return whether ``path`` names ``BipsyncBackend`` or a subclass of it."""
    try:
        backend = import_string(path) if path else None
    except ImportError:
        # Of a package that is gone: Django takes its sessions for nobody's.
        return False
    return isinstance(backend, type) and issubclass(backend, BipsyncBackend)


@receiver(token_refreshed)
def apply_refreshed_claims(*, token: BipsyncToken, claims: Claims, **kwargs: object) -> None:
    """Bring the person's user up to date with what Bipsync says now, not only when they sign in.

    Inside a transaction that is put off until it commits: the user's row would stay locked while
    the caller asks Bipsync. After a rollback the next refresh sees to it.
    """
    backend, user = site_backend(), token.user
    if user is None or backend is None:
        return
    tenant, identity = get_tenant(token.tenant), Identity.of(token)

    def apply() -> None:
        with transaction.atomic(using=database()):
            # Meanwhile the account may have become nobody's, or newer claims have come.
            rows = identity.rows().select_for_update().filter(generation=token.generation)
            if any(Identity.of(row) == identity for row in rows):
                backend().apply_claims(token, user, tenant, claims)

    transaction.on_commit(apply, using=database(), robust=True)

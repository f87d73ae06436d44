"""The authentication backend."""

from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.backends import ModelBackend
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils.module_loading import import_string

from .conf import get_tenant
from .durable import database
from .exceptions import SignInRefused
from .models import BipsyncToken
from .oauth.claims import Claims
from .signals import token_refreshed
from .users import SignIn, UserPolicy

__all__ = ["BipsyncBackend", "SignIn", "apply_refreshed_claims", "site_backend"]


class BipsyncBackend(UserPolicy, ModelBackend):
    """Signs in people whom Bipsync vouches for; permissions work as in ``ModelBackend``.

    Passwords are not looked at: keep ``ModelBackend`` in ``AUTHENTICATION_BACKENDS`` for those.
    Subclass it to override ``is_allowed``, ``find_user``, ``create_user``, ``update_user`` or
    Django's own ``get_user``.
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
        """Return the user of a ``SignIn``, or ``None`` without one. Raises ``SignInRefused``."""
        if bipsync is None:
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


def site_backend() -> type[BipsyncBackend] | None:
    """Return the site's own ``BipsyncBackend``, the first in ``AUTHENTICATION_BACKENDS``."""
    for path in settings.AUTHENTICATION_BACKENDS:
        backend = import_string(path)
        if isinstance(backend, type) and issubclass(backend, BipsyncBackend):
            return backend
    return None


@receiver(token_refreshed)
def apply_refreshed_claims(*, token: BipsyncToken, claims: Claims, **kwargs: object) -> None:
    """Bring the person's user up to date with what Bipsync says now, not only when they sign in.

    Inside a transaction that is put off until it commits: the user's row would stay locked while
    the caller asks Bipsync. After a rollback the next refresh sees to it.
    """
    backend, user = site_backend(), token.user
    if user is None or backend is None:
        return
    tenant = get_tenant(token.tenant)
    transaction.on_commit(
        lambda: backend().apply_claims(token, user, tenant, claims), using=database(), robust=True
    )

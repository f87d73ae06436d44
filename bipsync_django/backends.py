"""The authentication backend."""

from dataclasses import dataclass
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from .conf import Tenant
from .exceptions import SignInRefused
from .oauth.claims import Claims
from .users import UserPolicy

__all__ = ["BipsyncBackend", "SignIn"]


@dataclass(frozen=True)
class SignIn:
    """A validated sign-in: what ``BipsyncBackend`` takes for credentials.

    ``known`` is the user that tenant and subject belong to already, or ``None``.
    """

    tenant: Tenant
    claims: Claims
    known: AbstractBaseUser | None


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
            return self.resolve(bipsync.tenant, bipsync.claims, bipsync.known)
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

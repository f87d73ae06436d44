"""The list of tokens."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.formats import localize
from django.utils.timezone import localtime
from django.utils.translation import gettext_lazy as _

from ..errors import explain
from ..models import BipsyncToken

__all__ = ["BipsyncTokenAdmin"]

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[BipsyncToken]
else:
    _ModelAdmin = admin.ModelAdmin


@admin.register(BipsyncToken)
class BipsyncTokenAdmin(_ModelAdmin):
    """Who is connected, and how that is going. Nothing can be added or edited here."""

    fields = (
        "user",
        "tenant",
        "kind",
        "subject",
        "status",
        "scopes",
        "client_id",
        "created_at",
        "signed_in_at",
        "obtained_at",
        "access_expires_at",
        "next_refresh_at",
        "attempt",
        "error",
        "doubt",
    )
    list_display = ("person", "tenant", "status", "access_expires_at", "obtained_at", "error")
    list_filter = ("status", "tenant", "kind")
    list_select_related = ("user",)
    ordering = ("tenant", "user_id")
    readonly_fields = ("error", "doubt")

    @admin.display(description=_("person"), ordering="user")
    def person(self, token: BipsyncToken) -> str:
        return str(token.user) if token.user else token.subject

    @admin.display(description=_("last error"), empty_value="–")
    def error(self, token: BipsyncToken) -> str:
        return explain(token.last_error)

    @admin.display(description=_("in doubt"), empty_value="–")
    def doubt(self, token: BipsyncToken) -> str:
        if token.in_doubt_at is None:
            return ""
        return _(
            "The answer to a refresh of %(time)s was lost. The next refresh will tell whether "
            "Bipsync had given out new tokens; if so, the person has to sign in again."
        ) % {"time": localize(localtime(token.in_doubt_at))}

    def get_queryset(self, request: HttpRequest) -> QuerySet[BipsyncToken]:
        # What is not read cannot be shown.
        return super().get_queryset(request).defer("access_token", "refresh_token")

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        return ("subject", "tenant", f"user__{get_user_model().USERNAME_FIELD}")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Asked from the page that deletes a person, it is the person's permission that counts.
        match = request.resolver_match
        own = match is not None and (match.url_name or "").startswith("bipsync_django_")
        return not own

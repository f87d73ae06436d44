"""The list of tokens, and the page of one."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.options import IS_POPUP_VAR
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.formats import localize
from django.utils.safestring import SafeString
from django.utils.timezone import localtime
from django.utils.translation import gettext_lazy as _

from .. import errors, events, health, scopes
from ..conf import get_settings
from ..decorators import outside_transactions
from ..exceptions import ConfigurationError
from ..models import BipsyncToken, TokenEvent
from . import panel, service
from .actions import ACTIONS, MOST_AT_ONCE, Action, allowed, carry_out, queue
from .wording import badge, condition, moment

__all__ = ["BipsyncTokenAdmin"]

_EVENTS_SHOWN = 50
_NAMES_SHOWN = 20
_ASK_AGAIN_AFTER = 3
_PK = re.compile(r"[0-9]{1,18}")

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[BipsyncToken]
else:
    _ModelAdmin = admin.ModelAdmin


class _TenantFilter(admin.SimpleListFilter):
    """By the tenants of the settings, and those without settings that have rows still."""

    title = _("tenant")
    parameter_name = "tenant"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        try:
            configured = [(slug, one.name) for slug, one in get_settings().tenants.items()]
            return configured + [
                (one.tenant, _("%(tenant)s (not in the settings)") % {"tenant": one.tenant})
                for one in panel.report_for(request).removed
            ]
        except ConfigurationError:
            return []

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[BipsyncToken]
    ) -> QuerySet[BipsyncToken]:
        return queryset if self.value() is None else queryset.filter(tenant=self.value())


class _TroubleFilter(admin.SimpleListFilter):
    """By what is wrong although the status says "active"."""

    title = _("trouble")
    parameter_name = "trouble"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [("failing", _("refresh fails")), ("overdue", _("refresh overdue"))]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[BipsyncToken]
    ) -> QuerySet[BipsyncToken]:
        rows: Any = queryset
        if self.value() == "failing":
            return rows.failing()  # type: ignore[no-any-return]
        if self.value() == "overdue":
            return rows.overdue(timezone.now() - health.OVERDUE_AFTER)  # type: ignore[no-any-return]
        return queryset


def _asking(action: Action) -> Any:
    """Return what Django calls for ``action`` and the rows that were chosen."""

    def ask(
        model_admin: "BipsyncTokenAdmin", request: HttpRequest, queryset: QuerySet[BipsyncToken]
    ) -> HttpResponse | None:
        pks = list(queryset.values_list("pk", flat=True)[: MOST_AT_ONCE + 1])
        if len(pks) > MOST_AT_ONCE:
            too_many = _("At most %(count)d at once: choose fewer.") % {"count": MOST_AT_ONCE}
            messages.error(request, too_many)
            return None
        return model_admin.ask(request, action, pks)

    ask.__name__ = action.name
    title: Any = action.title
    return admin.action(ask, permissions=[action.name], description=title)


@admin.register(BipsyncToken)
class BipsyncTokenAdmin(_ModelAdmin):
    """Who is connected, and how that is going. Nothing can be added or edited here."""

    fields = (
        "user",
        "tenant",
        "kind",
        "subject",
        "state",
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
    list_display = (
        "person",
        "state",
        "error",
        "expires",
        "last_refresh",
        "next_refresh",
        "failures",
        "tenant",
        "kind",
    )
    list_filter = ("status", _TroubleFilter, _TenantFilter, "kind")
    list_select_related = ("user",)
    actions = [_asking(action) for action in ACTIONS.values()]
    list_per_page = 25
    ordering = ("-pk",)
    readonly_fields = ("state", "error", "doubt")
    search_help_text = _("Username, Bipsync's id of a person, or tenant")
    show_full_result_count = False

    class Media:
        css = {"all": ("bipsync_django/admin.css",)}

    # --- columns

    @admin.display(description=_("person"), ordering="user")
    def person(self, token: BipsyncToken) -> str:
        return token.owner

    @admin.display(description=_("status"), ordering="status")
    def state(self, token: BipsyncToken) -> SafeString:
        return badge(condition(token))

    @admin.display(description=_("expires"), ordering="access_expires_at")
    def expires(self, token: BipsyncToken) -> str:
        return moment(token.access_expires_at)

    @admin.display(description=_("last refresh"), ordering="obtained_at")
    def last_refresh(self, token: BipsyncToken) -> str:
        return moment(token.obtained_at)

    @admin.display(description=_("next refresh"), ordering="next_refresh_at")
    def next_refresh(self, token: BipsyncToken) -> str:
        return moment(token.next_refresh_at)

    @admin.display(description=_("failures"), ordering="attempt")
    def failures(self, token: BipsyncToken) -> int:
        return token.attempt

    @admin.display(description=_("last error"), empty_value="–")
    def error(self, token: BipsyncToken) -> str:
        return errors.explain(token.last_error)

    @admin.display(description=_("in doubt"), empty_value="–")
    def doubt(self, token: BipsyncToken) -> str:
        if token.in_doubt_at is None:
            return ""
        return _(
            "The answer to a refresh of %(time)s was lost. The next refresh will tell whether "
            "Bipsync had given out new tokens; if so, the person has to sign in again."
        ) % {"time": localize(localtime(token.in_doubt_at))}

    # --- what may be seen and done

    def get_queryset(self, request: HttpRequest) -> QuerySet[BipsyncToken]:
        # What is not read cannot be shown.
        return super().get_queryset(request).defer("access_token", "refresh_token")

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        return ("subject", "tenant", f"user__{get_user_model().USERNAME_FIELD}")

    def has_refresh_permission(self, request: HttpRequest) -> bool:
        return allowed(request, ACTIONS["refresh"])

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return allowed(request, ACTIONS["retry"])

    def has_disconnect_permission(self, request: HttpRequest) -> bool:
        return allowed(request, ACTIONS["disconnect"])

    def has_end_sessions_permission(self, request: HttpRequest) -> bool:
        return allowed(request, ACTIONS["end_sessions"])

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Asked from the page that deletes a person, it is the person's permission that counts.
        match = request.resolver_match
        own = match is not None and (match.url_name or "").startswith("bipsync_django_")
        return not own

    # --- pages

    def get_urls(self) -> list[URLPattern]:
        """Return Django's own, and those of actions and service accounts before them."""

        def page(route: str, view: Callable[..., HttpResponse], name: str) -> URLPattern:
            def in_this_admin(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
                # Links lead into the admin that they are shown in: a site may have several.
                request.current_app = self.admin_site.name
                return view(request, *args, **kwargs)

            guarded: Any = outside_transactions(self.admin_site.admin_view(in_this_admin))
            found: URLPattern = path(route, guarded, name=f"bipsync_django_bipsynctoken_{name}")
            return found

        return [
            page("do/<slug:name>/", self.action_view, "action"),
            page("progress/<slug:batch>/", self.progress_view, "progress"),
            page("service/", partial(service.view, self), "service"),
            *super().get_urls(),
        ]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the list, and above it how all is."""
        extra: dict[str, Any] = {
            "title": _("Bipsync connections"),
            "may_connect_service": service.allowed(request),
        }
        if IS_POPUP_VAR not in request.GET and self.has_view_permission(request):
            extra["panel"] = panel.context(request)
        return super().changelist_view(request, {**extra, **(extra_context or {})})

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show one row: what is known, what has happened, and what can be done."""
        token = self.get_object(request, object_id)
        extra: dict[str, Any] = {}
        if token is not None and self.has_view_permission(request, token):
            happened = token.events.select_related("actor").order_by("-at", "-pk")
            extra = {
                "token": token,
                "error": errors.explain(token.last_error),
                "advice": errors.advise(token.last_error),
                "events": [_told(event) for event in happened[:_EVENTS_SHOWN]],
                "scopes": zip(
                    sorted(token.scope_set), scopes.describe(token.scope_set), strict=True
                ),
                "claims": token.claims,
                "actions": [
                    {"title": action.title, "url": self._action_url(action, [token.pk])}
                    for action in ACTIONS.values()
                    if token.status in action.statuses and allowed(request, action)
                ],
            }
        extra["title"] = _("Bipsync connection")
        return super().change_view(request, object_id, form_url, {**extra, **(extra_context or {})})

    def action_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Say what an action means; carry it out when its button is pressed."""
        action = ACTIONS.get(name)
        if action is None:
            raise Http404
        asked = request.POST if request.method == "POST" else request.GET
        pks = [int(pk) for pk in asked.get("tokens", "").split(",") if _PK.fullmatch(pk)]
        if not (allowed(request, action) and self.has_view_permission(request)):
            raise PermissionDenied
        if request.method == "POST":
            return self._carry_out(request, action, pks[:MOST_AT_ONCE])
        return self.ask(request, action, pks[:MOST_AT_ONCE])

    def ask(self, request: HttpRequest, action: Action, pks: list[int]) -> HttpResponse:
        """Return the page that says what ``action`` means, and to whom."""
        rows = self.get_queryset(request).select_related("user").filter(pk__in=pks)
        count = rows.count()
        context = {
            **self.admin_site.each_context(request),
            "title": action.title,
            "opts": self.opts,
            "action": action,
            "media": self.media,
            "count": count,
            "names": [row.owner for row in rows[:_NAMES_SHOWN]],
            "more": max(count - _NAMES_SHOWN, 0),
            "tokens": ",".join(map(str, pks)),
            "url": self._action_url(action, []),
        }
        return TemplateResponse(request, _template("action"), context)

    def progress_view(self, request: HttpRequest, batch: str) -> HttpResponse:
        """Show how far a batch of refreshes has come; the page asks again by itself."""
        if not (allowed(request, ACTIONS["refresh"]) and self.has_view_permission(request)):
            raise PermissionDenied
        progress = events.progress(batch)
        if not progress.asked:
            raise Http404
        context = {
            **self.admin_site.each_context(request),
            "title": _("Refreshing"),
            "opts": self.opts,
            "media": self.media,
            "progress": progress,
            "done": progress.asked - progress.waiting,
        }
        response = TemplateResponse(request, _template("progress"), context)
        if progress.waiting:
            response.headers["Refresh"] = str(_ASK_AGAIN_AFTER)
        return response

    def _carry_out(self, request: HttpRequest, action: Action, pks: list[int]) -> HttpResponse:
        rows = self.get_queryset(request).select_related("user").filter(pk__in=pks)
        chosen = rows.filter(status__in=action.statuses)
        if action.name == "refresh" and chosen.count() > 1:
            batch = queue(request, chosen)
            if batch is not None:
                self._log(request, action, chosen)
                return HttpResponseRedirect(self._url("progress", batch))
        else:
            done = carry_out(request, action, rows)
            self._log(request, action, rows.filter(pk__in=[row.pk for row in done]))
        health.forget_report()
        if len(pks) == 1 and rows.exists():
            return HttpResponseRedirect(self._url("change", pks[0]))
        return HttpResponseRedirect(self._url("changelist"))

    def _log(self, request: HttpRequest, action: Action, rows: QuerySet[BipsyncToken]) -> None:
        user: Any = request.user
        LogEntry.objects.log_actions(user.pk, rows, CHANGE, change_message=str(action.title))

    def _action_url(self, action: Action, pks: list[int]) -> str:
        query = f"?tokens={','.join(map(str, pks))}" if pks else ""
        return self._url("action", action.name) + query

    def _url(self, name: str, *args: object) -> str:
        names = f"admin:bipsync_django_bipsynctoken_{name}"
        return reverse(names, args=args, current_app=self.admin_site.name)


def _told(event: TokenEvent) -> dict[str, Any]:
    return {
        "at": event.at,
        "name": event.get_name_display(),
        "reason": errors.explain(event.reason),
        "detail": "" if event.name == TokenEvent.Name.REFRESH_ASKED else event.detail,
        "actor": event.actor,
    }


def _template(name: str) -> str:
    return f"admin/bipsync_django/bipsynctoken/{name}.html"

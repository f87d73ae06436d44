"""The middleware that ends a session with the grant that it depends on."""

from collections.abc import Callable
from typing import Any

from django.contrib.auth.views import LogoutView
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.cache import add_never_cache_headers
from django.utils.deprecation import MiddlewareMixin

from . import error_reports, sessions
from .failures import login_url, refuse, refuse_program, wants_page
from .sessions import Lapsed, Verdict

__all__ = ["BipsyncSessionMiddleware"]

_LOGOUT_NAMES = {"logout", "account_logout"}


class BipsyncSessionMiddleware(MiddlewareMixin):
    """Let nobody be signed in by a session whose grant has ended, and show the way back in.

    Place it after ``AuthenticationMiddleware`` and before all middleware that asks who is signed
    in, such as ``LoginRequiredMiddleware``. It looks at sessions that our backend began and at no
    others. From here on a request of a lapsed session is a visitor's, whatever its method and
    its view: that does not depend on the answers below, which only spare the person a detour.
    """

    def process_request(self, request: HttpRequest) -> None:
        """Judge the session, and see to it that no error from here on shows a secret."""
        error_reports.guard(request)
        sessions.examine(request)

    def process_view(
        self,
        request: HttpRequest,
        view_func: Callable[..., Any],
        view_args: tuple[Any, ...],
        view_kwargs: dict[str, Any],
    ) -> HttpResponse | None:
        """Return the answer to a request of a lapsed session, or ``None`` to ask the view."""
        lapsed = sessions.lapsed_of(request)
        if lapsed is None and _is_ours(request):
            # Joining an account is for good: our own views do not rely on a check that is cached.
            lapsed = sessions.examine(request, anew=True)
        if lapsed is None:
            return None
        if _signs_out(request, view_func):
            lapsed.end()
            return None
        if not wants_page(request):
            # Django REST framework marks all its views with ``login_not_required``.
            return refuse_program(request, "sign_in_required", tenant=lapsed.tenant)
        if not getattr(view_func, "login_required", True):
            return None
        if request.method in {"GET", "HEAD"}:
            return self.answer_page(request, lapsed, view_func)
        return self.answer_form(request, lapsed)

    def process_response(self, request: HttpRequest, response: Any) -> Any:
        """Let the browser keep a session that waits for its person."""
        sessions.put_back(request, is_streaming=getattr(response, "streaming", False))
        return response

    def answer_page(
        self, request: HttpRequest, lapsed: Lapsed, view_func: Callable[..., Any]
    ) -> HttpResponse | None:
        """Return the redirect to sign-in, or ``None`` where the view itself knows the way."""
        if lapsed.verdict is Verdict.OVER or getattr(view_func, "bipsync_token_required", False):
            return None
        response = HttpResponseRedirect(login_url(request.get_full_path(), lapsed.tenant))
        add_never_cache_headers(response)
        return response

    def answer_form(self, request: HttpRequest, lapsed: Lapsed) -> HttpResponse:
        """Return the page that keeps what was typed: sign in elsewhere, then send it again."""
        sessions.keep_forms_valid(request)
        return refuse(
            request,
            "sign_in_again",
            f"A form of user {lapsed.user} came in a session that has lapsed.",
            retry_url=login_url("", lapsed.tenant),
        )


def _is_ours(request: HttpRequest) -> bool:
    match = request.resolver_match
    if match is None:
        return False
    name = match.url_name or ""
    return "bipsync" in match.app_names or name.startswith("bipsync_django_bipsynctoken_")


def _signs_out(request: HttpRequest, view_func: Callable[..., Any]) -> bool:
    """Whether the person wants to sign out, which a lapsed session must not keep them from."""
    match = request.resolver_match
    is_logout = match is not None and match.url_name in _LOGOUT_NAMES
    view_class = getattr(view_func, "view_class", None)
    is_logout = is_logout or (isinstance(view_class, type) and issubclass(view_class, LogoutView))
    return is_logout and request.method == "POST"

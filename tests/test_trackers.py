"""What a real error tracker is told when something fails: no secret, in whatever it keeps."""

import inspect
import io
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sentry_sdk
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import got_request_exception
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from bipsync_django import (
    conf,
    error_reports,
    failures,
    fields,
    flow,
    lifecycle,
    redaction,
    secret_sources,
    views,
)
from bipsync_django.api import api_session
from bipsync_django.exceptions import BipsyncError, RefreshUnavailable
from bipsync_django.models import BipsyncToken
from bipsync_django.oauth import claims, client
from bipsync_django.testing import Answer, DropAfter, Html, SimulatedBipsync
from tests.browser import Browser
from tests.grants import connect, expire, reload
from tests.test_canary import hits
from tests.trackers import (
    Kept,
    break_templates,
    by_asgi,
    by_wsgi,
    frames,
    held,
    marked,
    tracker,
)

pytestmark = pytest.mark.django_db(transaction=True)

CLIENT_SECRET = "canary/client+secret=" + "q7Rw" * 6


@pytest.fixture
def kept() -> Iterator[Kept]:
    with tracker(views, failures) as kept:
        yield kept


@pytest.fixture
def site(bipsync: SimulatedBipsync, settings: Any) -> SimulatedBipsync:
    bipsync.client_secret = CLIENT_SECRET
    settings.BIPSYNC = {**settings.BIPSYNC, "CLIENT_SECRET": CLIENT_SECRET}
    return bipsync


SERVERS = {"wsgi": by_wsgi, "asgi": by_asgi}
Server = Callable[[Browser, str], int]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Server:
    return SERVERS[request.param]


FAILURES: dict[str, Any] = {
    "server error": Html(500),
    "dropped": DropAfter(),
    "bad secret": Answer(401, {"error": "invalid_client"}),
    "not json": Answer(200, "x"),
}


# --- the callback


@pytest.mark.parametrize("how", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("template", ["failure.html", "base.html", None])
def test_a_callback_that_fails_and_whose_page_fails_too_tells_no_secret(
    site: SimulatedBipsync,
    kept: Kept,
    settings: Any,
    tmp_path: Path,
    server: Server,
    template: str | None,
    how: Any,
) -> None:
    if template is not None:
        break_templates(settings, tmp_path, template)
    browser = Browser()
    callback = site.approve(browser.begin("/reports/"))
    secrets = {"client secret": CLIENT_SECRET, **marked(browser, callback)}
    site.fail("token", how)
    walked: list[bytes] = []

    def walk(**kwargs: Any) -> None:
        walked.extend([held(sys.exception()), repr(kwargs["request"]).encode()])

    got_request_exception.connect(walk)
    try:
        status = server(browser, callback)
    finally:
        got_request_exception.disconnect(walk)
    assert (status == 500) is (template is not None), status
    assert bool(walked) is (template is not None)
    assert b"/bipsync/callback/" in kept.text()
    assert b'"transaction"' in kept.text(), "spans were kept as well"
    seen = {"an event": kept.text(), "frames": b"\n".join(walked)}
    assert hits(seen, secrets) == []


@pytest.mark.parametrize("page", ["resume.html", "leave.html"])
def test_a_page_on_the_way_that_fails_tells_no_secret(
    site: SimulatedBipsync, kept: Kept, settings: Any, tmp_path: Path, server: Server, page: str
) -> None:
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    browser = Browser()
    callback = site.approve(browser.begin())
    secrets = {"client secret": CLIENT_SECRET, **marked(browser, callback)}
    break_templates(settings, tmp_path, page)
    assert server(browser, callback) == (500 if page == "resume.html" else 200)
    assert b"/bipsync/callback/" in kept.text()
    assert hits({"an event": kept.text()}, secrets) == []


def test_the_query_is_forgotten_before_anything_is_logged(
    site: SimulatedBipsync, kept: Kept, caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    # A tracker that reads the request when something is logged, and filters nothing.
    browser = Browser()
    callback = site.approve(browser.begin())
    secrets = {"client secret": CLIENT_SECRET, **marked(browser, callback)}
    seen: list[str] = []

    class Reads(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for info in inspect.stack():
                request: Any = info.frame.f_locals.get("request")
                if hasattr(request, "META"):
                    seen.append(f"{request!r} {request.GET!r}")
                    seen.append(repr([request.META.get(n) for n in QUERIES]))

    handler = Reads(logging.DEBUG)
    logger = logging.getLogger("bipsync_django")
    logger.addHandler(handler)
    site.fail("token", Answer(401, {"error": "invalid_client"}))
    try:
        assert by_wsgi(browser, callback) == 503
    finally:
        logger.removeHandler(handler)
    assert any("/bipsync/callback/" in one for one in seen)
    assert hits({"a request": "\n".join(seen).encode()}, secrets) == []


QUERIES = ("QUERY_STRING", "RAW_URI", "REQUEST_URI")


# --- events that pass through our filter


def test_an_event_is_redacted_wherever_a_secret_stands() -> None:
    token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"
    event: dict[str, Any] = {
        "request": {"query_string": "code=opaqueopaque&state=opaqueopaque"},
        "spans": [{"data": {"context": {"resume_url": "/callback/?code=opaqueopaque"}}}],
        "exception": {"values": [{"stacktrace": {"frames": [{"vars": {"code": "opaque"}}]}}]},
        "breadcrumbs": ({"message": f"Bearer {token}"},),
        "level": "error",
        "timestamp": 1,
    }
    told: Any = error_reports.redact_event(event, {})
    assert "opaque" not in repr(told)
    assert token[:24] not in repr(told)
    assert (told["level"], told["timestamp"]) == ("error", 1)
    assert told["request"]["query_string"].startswith("code=")


def test_each_request_passes_through_the_filter_once(kept: Kept, rf: Any) -> None:
    scope = sentry_sdk.get_current_scope()
    before = scope._event_processors.count(error_reports.redact_event)
    request = rf.get("/")
    for _ in range(3):
        error_reports.guard(request)
    assert scope._event_processors.count(error_reports.redact_event) == before + 1


SECRET = "def50200" + "ab" * 40


class Shown:
    """A site's own object, whose text shows what it holds."""

    def __repr__(self) -> str:
        return f"<Shown refresh_token={SECRET}>"


class Hidden:
    def __repr__(self) -> str:
        raise LookupError(SECRET)


def circle() -> Any:
    found: dict[str, Any] = {"token": SECRET}
    found["itself"] = [found]
    return found


def nested(depth: int) -> Any:
    found: Any = {"token": SECRET}
    for _ in range(depth):
        found = {"n": found}
    return found


VALUES: dict[str, Callable[[], Any]] = {
    "text": lambda: SECRET,
    "a circle": circle,
    "deep": lambda: nested(400),
    "nearly as deep as is looked": lambda: nested(45),
    "bytes": lambda: f"refresh_token={SECRET}".encode(),
    "bytearray": lambda: bytearray(SECRET.encode()),
    "set": lambda: {SECRET},
    "frozenset": lambda: frozenset({SECRET}),
    "object": Shown,
    "object in a tuple": lambda: (Shown(),),
    "object without a text": Hidden,
    "key": lambda: {SECRET: 1},
    "bytes behind a name": lambda: {"code": b"opaque-one-time-code"},
    "list behind a name": lambda: {"client_secret": ["opaque-one-time-code"]},
    "pair": lambda: [("code", "opaque-one-time-code")],
}


def told(rf: Any, value: Any, **more: Any) -> bytes:
    """Return what Sentry sends about a mistake of a site's that has told it of ``value``."""
    with tracker(**more) as kept:
        error_reports.guard(rf.get("/"))
        sentry_sdk.get_current_scope().set_extra("given", value)
        refresh_token = SECRET
        try:
            raise KeyError(len(refresh_token))
        except KeyError:
            sentry_sdk.capture_exception()
        sentry_sdk.flush()
    assert b"KeyError" in kept.text()
    return kept.text()


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_no_value_keeps_an_event_from_being_redacted(rf: Any, value: Any) -> None:
    text = told(rf, value())
    assert b'"given"' in text
    assert SECRET.encode() not in text
    assert b"opaque-one-time-code" not in text


@pytest.mark.parametrize("door", ["a request", "before_send"])
@pytest.mark.parametrize("error", [RecursionError, ValueError])
def test_an_event_that_cannot_be_redacted_only_names_its_error(
    rf: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception], door: str
) -> None:
    def fail(text: str) -> str:
        raise error(text)

    monkeypatch.setattr(error_reports, "redact", fail)
    if door == "before_send":
        monkeypatch.setattr(error_reports, "_guard_sentry", lambda request: None)
    more = {"before_send": error_reports.redact_event} if door == "before_send" else {}
    text = told(rf, "what is given", **more)
    assert SECRET.encode() not in text
    assert b"what is given" not in text
    assert b"could not be redacted" in text
    # A trace without its spans is no use, and something that is no event is not sent.
    for event in ({"type": "transaction"}, {"exception": SECRET}, SECRET):
        assert error_reports.redact_event(event) is None


def test_what_is_clean_stays_as_it_is(rf: Any) -> None:
    plain = [1, 2.5, None, True, range(10**9), b"bytes", object(), {"a": {1, 2}}]
    found: Any = error_reports.redact_event({"extra": plain, "code": 404, "state": None})
    assert (found["code"], found["state"]) == (404, None)
    assert found["extra"][:-1] == plain[:-1]
    twice = ["x"]
    assert error_reports.redact_event({"a": twice, "b": twice}) == {"a": ["x"], "b": ["x"]}


def test_each_list_is_looked_at_once_however_often_it_is_mentioned() -> None:
    value: Any = [SECRET]
    for _ in range(40):
        value = [value, value, value]
    found: Any = error_reports.redact_event({"extra": value})
    found = found["extra"]
    for _ in range(40):
        assert found[0] is found[2]
        found = found[0]
    assert found == [redaction.REDACTED]


def mistaken(request: HttpRequest) -> HttpResponse:
    refresh_token = SECRET
    raise KeyError(len(request.body), len(refresh_token))


urlpatterns = [path("mistaken/", csrf_exempt(mistaken))]


@pytest.mark.parametrize("depth", [1, 100, 200, 300, 450])
def test_no_visitor_opens_the_filter_by_what_they_send(
    settings: Any, kept: Kept, depth: int
) -> None:
    settings.ROOT_URLCONF = __name__
    body = ('{"a":' * depth + "1" + "}" * depth).encode()
    request = RequestFactory().post("/mistaken/", body, content_type="application/json")
    environ = {**request.environ, "wsgi.input": io.BytesIO(body)}
    statuses: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
        statuses.append(status)

    b"".join(WSGIHandler()(environ, start_response))
    assert statuses[0].startswith("500")
    assert b"KeyError" in kept.text()
    assert SECRET.encode() not in kept.text()


def test_a_sentry_that_is_unknown_breaks_no_request_and_is_told_nothing(
    bipsync: SimulatedBipsync,
    kept: Kept,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As before 2.0, which has no ``get_client``."""
    monkeypatch.setattr(sentry_sdk.scope, "global_event_processors", [])
    error_reports._strip_all_events.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sentry_sdk", ModuleType("sentry_sdk"))
        for _ in range(3):
            assert Browser().open("/bipsync/login/").status_code == 302
    (record,) = [r for r in caplog.records if "Use sentry-sdk 2" in r.getMessage()]
    assert "AttributeError" in record.getMessage()
    assert sentry_sdk.scope.global_event_processors == [error_reports._strip]
    refresh_token = SECRET
    try:
        raise KeyError(len(refresh_token))
    except KeyError:
        sentry_sdk.capture_exception()
    assert b"KeyError" in kept.text()
    assert SECRET.encode() not in kept.text()


# --- using a grant


def site_view(work: Callable[[], Any]) -> BaseException:
    """Do what a site's view or task does, and report what it raises.

    In a thread, because Sentry may show all frames that run, and the test's own hold the secrets.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_report, work).result()


def _report(work: Callable[[], Any]) -> BaseException:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - a tracker is told of anything
        sentry_sdk.capture_exception(error)
        return error
    finally:
        connections.close_all()
    raise AssertionError("nothing was raised")


def pair_of(row: BipsyncToken) -> dict[str, str]:
    row = reload(row)
    columns = {name: row.unseal(name) for name in ("access_token", "refresh_token")}
    return {"client secret": CLIENT_SECRET} | {n: v for n, v in columns.items() if v is not None}


def hold_back(row: BipsyncToken, site: SimulatedBipsync) -> BipsyncToken:
    """Let the row's token be one that does not validate any more: it is another application's."""
    BipsyncToken.objects.filter(pk=row.pk).update(
        validated_generation=row.generation - 1, last_error="token_refused"
    )
    return reload(row)


DOORS: dict[str, Callable[[BipsyncToken], Any]] = {
    "access_token": lambda row: lifecycle.access_token(row),
    "replace_refused": lambda row: lifecycle.replace_refused(row, "eyJ" + "other" * 9),
    "api_session": lambda row: api_session(row.user).get("/v1/users/me"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_token_that_is_held_back_is_in_no_frame(
    site: SimulatedBipsync, kept: Kept, settings: Any, door: Any
) -> None:
    row = connect(site)
    secrets = pair_of(row)
    # Signed for somebody else, as far as this site knows.
    settings.BIPSYNC = {**settings.BIPSYNC, "AUDIENCE": "another-application"}
    row = hold_back(row, site)
    error = site_view(lambda: door(row))
    assert isinstance(error, RefreshUnavailable)
    assert b"held back" in kept.text()
    seen = {"an event": kept.text(), "frames": held(error, apart_from=__file__)}
    assert hits(seen, secrets) == []


USES: dict[str, Callable[[BipsyncToken], Any]] = {
    "access_token": lambda row: lifecycle.access_token(expire(row)),
    "refresh": lambda row: lifecycle.refresh(expire(row), force=True),
    "retry": lambda row: lifecycle.retry(needs_sign_in(row)),
    "replace_refused": lambda row: lifecycle.replace_refused(
        expire(row), reload(row).unseal("access_token") or ""
    ),
    "api_session": lambda row: api_session(expire(row).user).get("/v1/users/me"),  # type: ignore[arg-type]
}


def needs_sign_in(row: BipsyncToken) -> BipsyncToken:
    BipsyncToken.objects.filter(pk=row.pk).update(status=BipsyncToken.Status.NEEDS_SIGN_IN)
    return reload(row)


OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    # Then each line of the log shows the frames that run at that moment, whatever they hold.
    "every line with its frames": {
        "attach_stacktrace": True,
        "before_send": error_reports.redact_event,
    },
}


@pytest.mark.parametrize("how", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_use_that_fails_tells_no_secret(
    site: SimulatedBipsync, use: Any, how: Any, options: Any
) -> None:
    with tracker(**options) as kept:
        row = connect(site)
        secrets = pair_of(row)
        site.fail("token", how)
        error = site_view(lambda: use(row))
    assert isinstance(error, BipsyncError)
    assert type(error).__name__.encode() in kept.text()
    seen = {"an event": kept.text(), "frames": held(error, apart_from=__file__)}
    assert hits(seen, secrets) == []


def test_a_mistake_while_a_pair_is_stored_tells_no_secret(
    site: SimulatedBipsync, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = connect(site)
    secrets = pair_of(row)

    def mistake(token: Any, session: Any) -> Any:
        secrets.update(new=token["access_token"], newer=token["refresh_token"])
        raise ZeroDivisionError

    monkeypatch.setattr(client, "_pair", mistake)
    error = site_view(lambda: lifecycle.refresh_if_due(expire(row).pk))
    assert isinstance(error, ZeroDivisionError)
    assert "new" in secrets
    seen = {"an event": kept.text(), "frames": held(error, apart_from=__file__)}
    assert hits(seen, secrets) == []


def test_a_secret_store_that_fails_tells_no_secret(kept: Kept) -> None:
    def source() -> str:
        value = CLIENT_SECRET
        raise ConnectionError(len(value))

    error = site_view(lambda: secret_sources.secret(source))
    assert hits({"e": kept.text(), "f": held(error)}, {"client secret": CLIENT_SECRET}) == []


def test_the_session_of_an_api_shows_no_token_in_the_sites_own_frames(
    site: SimulatedBipsync, kept: Kept
) -> None:
    row = connect(site)
    secrets = pair_of(row)

    def view() -> None:
        with api_session(row.user) as session:  # type: ignore[arg-type]
            response = session.get("/v1/users/me")
            kept_here = (session, response, response.request, session.adapters)
            raise RuntimeError("a mistake of the site's", len(kept_here))

    error = site_view(view)
    assert b"kept_here" in kept.text()
    assert hits({"an event": kept.text(), "frames": held(error)}, secrets) == []


# --- the decorator


def test_no_variable_is_left_in_what_leaves() -> None:
    @redaction.without_traces
    def door(secret: str, *, named: str) -> None:
        local = secret + named
        try:
            inner(local)
        except KeyError:
            raise ExceptionGroup("several", [_raised(local), _raised(local)]) from _raised(local)

    def inner(secret: str) -> None:
        raise KeyError(len(secret))

    with pytest.raises(ExceptionGroup) as caught:
        door("swordfish", named="swordfish")
    ours = [one for one in frames(caught.value) if not one.f_code.co_name.startswith("test_")]
    assert {"door", "inner", "_raised", "call"} <= {frame.f_code.co_name for frame in ours}
    doors = [one for one in ours if one.f_code.co_name == "call"]
    assert [one.f_locals for one in ours if one.f_locals and one not in doors] == []
    assert [one.f_locals.keys() for one in doors] == [{"function", "outer"}]


def _raised(secret: str) -> Exception:
    try:
        raise ValueError(len(secret))
    except ValueError as error:
        return error


def test_what_the_caller_was_handling_keeps_its_variables() -> None:
    def callers() -> None:
        mine = "needed"
        raise LookupError(len(mine))

    @redaction.without_traces
    def door() -> None:
        raise ValueError

    try:
        callers()
    except LookupError:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - has no text
            door()
    assert isinstance(caught.value.__context__, LookupError)
    (theirs,) = [one for one in frames(caught.value) if one.f_code.co_name == "callers"]
    assert theirs.f_locals == {"mine": "needed"}


def _is_guarded(function: Any) -> bool:
    function = getattr(function, "fget", function)
    return function.__code__ is redaction.without_traces(lambda: None).__code__


def test_every_function_that_handles_a_secret_is_guarded() -> None:
    lives = {name: getattr(lifecycle, name) for name in lifecycle.__all__}
    handle_none = {
        "CONFIRMED_WITHIN",
        "TAKEN_FOR",
        "Identity",
        "KeySurvey",
        "Outcome",
        "RemovedTenant",
        "TenantGivenUp",
        "connection_at",
        "grant_of",
        "may_be_confirmed",
        "remains_of",
        "removed_tenants",
        "service_grant_of",
    }
    assert [n for n, one in lives.items() if n not in handle_none and not _is_guarded(one)] == []
    others: list[Any] = [
        client.authorization_url,
        client.exchange_code,
        client.refresh_pair,
        claims.validate_access_token,
        conf.Tenant.has_another_secret,
        secret_sources.secret,
        fields.seal,
        fields.Sealed.unseal,
        fields.Sealed.renewed,
        fields.Sealed.is_current,
        BipsyncToken.seal,
        BipsyncToken.unseal,
        flow.begin,
        flow.find,
        flow.recall,
        flow.spend,
    ]
    assert [one.__qualname__ for one in others if not _is_guarded(one)] == []

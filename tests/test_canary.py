"""The whole journey with marked secrets: afterwards none is anywhere but where it belongs."""

import base64
import io
import json
import logging
import os
import re
import secrets
import subprocess
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, quote_plus, urlsplit

import django
import pytest
import redis
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core import mail
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.core.signals import got_request_exception
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.log import AdminEmailHandler
from kombu import Connection, Exchange, Queue

from bipsync_django import events, failures, lifecycle, views
from bipsync_django.api import api_session
from bipsync_django.exceptions import BipsyncError
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.signals import token_refreshed
from bipsync_django.testing import SimulatedBipsync
from tests import databases, urls
from tests.browser import CALLBACK, LOGIN, Browser, answer_confirmation, way_to_bipsync
from tests.databases import for_child, on
from tests.grants import expire, reload
from tests.test_redaction import FAILURES
from tests.trackers import Kept, break_templates, by_asgi, by_wsgi, held, marked, tracker
from tests.workers import Worker

CLIENT_SECRET = "canary/client+secret=" + secrets.token_urlsafe(24)

REDIS = os.environ.get("TEST_REDIS", "redis://127.0.0.1:6379")
RABBITMQ = os.environ.get("TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//")

site = logging.getLogger("site")


# --- what is looked for


def forms_of(secret: str) -> set[bytes]:
    """Return what a secret looks like in part: as it is, in addresses, in base64 at any offset."""
    # All access tokens begin alike, with a header that is no secret; what is signed is no use.
    core = secret.rpartition(".")[2]
    found = set()
    for piece in (core[:24], core[-24:], core[len(core) // 2 :][:24]):
        found |= {piece, quote(piece, safe=""), quote_plus(piece), json.dumps(piece)[1:-1]}
        for shift in range(3):
            encoded = base64.b64encode(b"." * shift + piece.encode()).decode()
            # The first and last characters depend on what stands beside the secret.
            found.add(encoded[4:-4])
            found.add(encoded[4:-4].replace("+", "-").replace("/", "_"))
    assert all(len(form) >= 13 for form in found), found
    return {form.encode() for form in found}


def hits(places: Mapping[str, bytes], marked: Mapping[str, str]) -> list[str]:
    """Return which secret was found where."""
    return [
        f"{name} in {place}"
        for name, secret in marked.items()
        for form in forms_of(secret)
        for place, content in places.items()
        if form in content
    ]


SECRET = "def50200" + "5f6e4d3c2b1a" * 20


@pytest.mark.parametrize(
    "leak",
    [
        SECRET,
        f"token={SECRET};",
        repr({"refresh_token": SECRET}),
        *(base64.b64encode(b"x" * n + SECRET.encode() + b"y").decode() for n in range(3)),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
        f"the start of it is {SECRET[:24]}",
        f"{SECRET[-24:]} is its end",
    ],
)
def test_a_secret_is_found_in_any_form(leak: str) -> None:
    assert hits({"a log": leak.encode()}, {"token": SECRET})


def test_a_secret_with_signs_is_found_in_an_address() -> None:
    for leak in (CLIENT_SECRET, quote(CLIENT_SECRET, safe=""), quote_plus(CLIENT_SECRET)):
        assert hits({"a log": leak.encode()}, {"secret": CLIENT_SECRET})
    assert not hits({"a log": b"nothing of it"}, {"secret": CLIENT_SECRET})


# --- the site


def boom(request: HttpRequest) -> HttpResponse:
    """A view of the site's, with tokens in its variables, that makes a mistake."""
    row = BipsyncToken.objects.get(user=request.user.pk)
    token = lifecycle.access_token(row)
    with api_session(request.user) as session:
        response = session.post(
            "/v1/graphql", json={"query": "{ users { edges { node { name } } } }"}
        )
        raise RuntimeError("a mistake of the site's", len(token), response.status_code)


urlpatterns = [*urls.urlpatterns, path("boom/", boom)]


@dataclass
class Journey:
    """What was seen on the way, and the secrets that were in use."""

    bipsync: SimulatedBipsync
    settings: Any
    folder: Path
    alias: str
    tracker: Kept
    # Error trackers show the variables of the test's own frames, too.
    seen: dict[str, bytes] = field(default_factory=dict, repr=False)
    marked: dict[str, str] = field(default_factory=dict, repr=False)

    def keep(self, place: str, content: bytes | str) -> None:
        content = content.encode() if isinstance(content, str) else content
        self.seen[place] = self.seen.get(place, b"") + b"\n" + content

    def page(self, response: Any) -> Any:
        self.keep("a page", bytes(response.content))
        return response

    def mark(self) -> None:
        """Note what Bipsync was sent so far, and what is stored now."""
        found = {"client secret": CLIENT_SECRET}
        for request in self.bipsync.requests:
            for name in ("code", "code_verifier", "refresh_token"):
                if value := request.form.get(name):
                    found[f"{name} {str(value)[-8:]}"] = str(value)
            bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if bearer.count(".") == 2:
                found[f"access token {bearer[-8:]}"] = bearer
        for row in BipsyncToken.objects.all():
            for column in ("access_token", "refresh_token"):
                if (value := row.unseal(column)) is not None:
                    found[f"{column} {value[-8:]}"] = value
        self.marked |= found


class _Everything(logging.FileHandler):
    """All that any logger says, and not what the simulated Bipsync's own libraries do."""

    def emit(self, record: logging.LogRecord) -> None:
        if "process_request_thread" not in (record.threadName or ""):
            super().emit(record)


@pytest.fixture
def journey(
    request: pytest.FixtureRequest,
    database: str,
    bipsync: SimulatedBipsync,
    settings: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Journey]:
    monkeypatch.setenv("TEST_CLIENT_SECRET", CLIENT_SECRET)
    bipsync.client_secret = CLIENT_SECRET
    settings.BIPSYNC = {**settings.BIPSYNC, "CLIENT_SECRET": CLIENT_SECRET, "HTTP_TIMEOUT": 1}
    settings.ROOT_URLCONF = __name__
    admin = "admin@portal.example"
    settings.ADMINS = [admin] if django.VERSION >= (6, 0) else [("Admin", admin)]
    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": REDIS,
            "KEY_PREFIX": f"canary-{uuid.uuid4().hex}",
        }
    }
    root, level = logging.getLogger(), logging.getLogger().level
    log = _Everything(tmp_path / "site.log")
    log.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    mails = AdminEmailHandler(include_html=True)
    mails.setLevel(logging.ERROR)
    requests = logging.getLogger("django.request")
    root.addHandler(log)
    root.setLevel(logging.DEBUG)
    requests.addHandler(mails)
    with tracker(views, failures) as kept:
        yield Journey(bipsync, settings, tmp_path, database, kept)
    requests.removeHandler(mails)
    root.removeHandler(log)
    root.setLevel(level)
    log.close()
    cache.clear()


def _in_browser(journey: Journey) -> Browser:
    bipsync = journey.bipsync
    browser = Browser(raise_request_exception=False)
    journey.page(browser.open(bipsync.decline(browser.begin())))
    callback = bipsync.approve(browser.begin("/research/"))
    journey.page(browser.open(callback))
    journey.page(browser.open(callback))
    journey.page(browser.open(bipsync.approve(browser.open("/research/")["Location"])))
    journey.page(browser.open("/research/"))
    journey.mark()
    for how in FAILURES.values():
        bipsync.fail("token", how)
        stranger = Browser()
        journey.page(stranger.open(bipsync.approve(stranger.begin())))
        bipsync.clear_failures()
    stranger = Browser()
    state = parse_qs(urlsplit(stranger.begin()).query)["state"][0]
    journey.page(stranger.open(f"{CALLBACK}?state={state}&code={'x' * 9000}"))
    journey.page(stranger.open(f"{LOGIN}?next=//evil.example/"))
    return browser


def _connect(journey: Journey) -> None:
    person = Browser()
    person.force_login(User.objects.create_superuser("root", "root@portal.example", "r"))
    left = person.post("/bipsync/connect/", secure=True)
    callback = journey.bipsync.approve(way_to_bipsync(left), user="grace@acme.example")
    back = person.open(callback)
    journey.page(back)
    journey.mark()
    journey.page(person.open(back["Location"]))
    journey.page(answer_confirmation(person, back))
    rows = BipsyncToken.objects.all()
    admin = "/admin/bipsync_django/bipsynctoken/"
    pages = ["", "?q=def50200", "?q=eyJ", *(f"{row.pk}/change/" for row in rows)]
    for page in [*pages, *(f"{row.pk}/history/" for row in rows)]:
        journey.page(person.get(admin + page, secure=True))
    _administer(journey, person, admin)
    for page in ("/bipsync/connection/", "/bipsync/disconnect/acme/", "/bipsync/connect/"):
        journey.page(person.get(page, secure=True))
    journey.keep("values()", repr(list(rows.values())))


def _administer(journey: Journey, boss: Browser, admin: str) -> None:
    """What an administrator can do in the panel, and a service account from first to last."""
    left = boss.post(f"{admin}service/", {"do": "connect", "tenant": "acme"}, secure=True)
    journey.page(left)
    journey.page(boss.open(journey.bipsync.approve(way_to_bipsync(left), user="zoe@acme.example")))
    journey.page(boss.get(f"{admin}service/", secure=True))
    waiting = BipsyncToken.objects.get(status=BipsyncToken.Status.UNCONFIRMED)
    journey.mark()
    confirm = {"do": "confirm", "token": waiting.pk, "generation": waiting.generation}
    journey.page(boss.post(f"{admin}service/", confirm, secure=True, follow=True))
    service = expire(waiting)
    for action in ("refresh", "end_sessions", "disconnect"):
        page = f"{admin}do/{action}/"
        journey.page(boss.get(page, {"tokens": service.pk}, secure=True))
        journey.mark()
        journey.page(boss.post(page, {"tokens": service.pk}, secure=True, follow=True))
    batch = events.ask_for(BipsyncToken.objects.all(), User.objects.get(username="root"))
    journey.page(boss.get(f"{admin}progress/{batch}/", secure=True))


def _refresh(journey: Journey) -> None:
    for how in FAILURES.values():
        journey.bipsync.fail("token", how)
        _try(lambda: lifecycle.refresh(expire(BipsyncToken.objects.earliest("pk")), force=True))
        journey.bipsync.clear_failures()
        journey.mark()
        BipsyncToken.objects.update(next_attempt_at=None, status=BipsyncToken.Status.ACTIVE)
        call_command("bipsync_deployment", stdout=io.StringIO())
        _close_breakers()
    _try(lambda: lifecycle.refresh(expire(BipsyncToken.objects.latest("pk"))))


def _try(work: Callable[[], Any]) -> None:
    try:
        work()
    except BipsyncError:
        site.exception("As a site would log it: %r", sys.exception())
        site.error("%s", traceback.format_exc())


def _close_breakers() -> None:
    from bipsync_django.models import TenantState

    TenantState.objects.update(breaker_until=None, configuration_error="")


def _make_mistakes(journey: Journey, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    _close_breakers()
    journey.page(browser.open(journey.bipsync.approve(browser.begin())))
    for debug in (False, True):
        journey.settings.DEBUG = debug
        answer = journey.page(browser.open("/boom/"))
        assert answer.status_code == 500, answer
        with monkeypatch.context() as patch:
            patch.setattr("bipsync_django.views.lifecycle.sign_in", _mistake)
            stranger = Browser(raise_request_exception=False)
            callback = journey.bipsync.approve(stranger.begin())
            assert journey.page(stranger.open(callback)).status_code == 500
    journey.settings.DEBUG = False
    journey.mark()
    bodies = [message.body for message in mail.outbox]
    for mistake in ("a mistake of ours", "a mistake of the site's"):
        assert sum(mistake in body for body in bodies) >= 2
    for message in mail.outbox:
        journey.keep("a mail", message.message().as_bytes())
        for content, _ in getattr(message, "alternatives", []):
            journey.keep("a mail", str(content))


def _break_pages(journey: Journey) -> None:
    """Let sign-ins fail, and the site's own template for the page about it as well."""

    def walk(**kwargs: Any) -> None:
        journey.keep("frames", held(sys.exception(), apart_from=__file__))
        journey.keep("frames", repr((kwargs["request"], kwargs["request"].META)))

    engines, templates = journey.settings.TEMPLATES, journey.folder / "templates"
    templates.mkdir()
    break_templates(journey.settings, templates, "failure.html")
    got_request_exception.connect(walk)
    for how in FAILURES.values():
        for server in (by_wsgi, by_asgi):
            browser = Browser()
            callback = journey.bipsync.approve(browser.begin())
            trip = marked(browser, callback)
            journey.marked |= {f"{name} of {callback[-8:]}": trip[name] for name in UNSPENT}
            journey.bipsync.fail("token", how)
            assert server(browser, callback) == 500
            journey.bipsync.clear_failures()
    got_request_exception.disconnect(walk)
    journey.settings.TEMPLATES = engines
    _close_breakers()


UNSPENT = ("code", "verifier")


def _mistake(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("a mistake of ours")


def _run_commands(journey: Journey) -> None:
    for command in (
        ["bipsync_refresh"],
        ["bipsync_rotate_keys"],
        ["bipsync_deployment"],
        ["check", "--deploy"],
        ["dumpdata", "bipsync_django", "sessions", f"--database={journey.alias}"],
    ):
        out = io.StringIO()
        with suppress(CommandError, SystemExit):
            call_command(*command, stdout=out, stderr=out)
        journey.keep(f"the output of {command[0]}", out.getvalue())
    assert "gAAAA" in journey.seen["the output of dumpdata"].decode()


# --- the worker


BROKERS = {
    "redis": (f"{REDIS}/0", f"{REDIS}/0"),
    "rabbitmq": (RABBITMQ, f"{REDIS}/0"),
}


def _work(journey: Journey, broker: str) -> None:
    """Let one refresh go well, one badly, and a site's task fail, with a worker and a broker."""
    name = f"bipsync-canary-{uuid.uuid4().hex}"
    url, results = BROKERS[broker]
    events = journey.folder / "events"
    events.mkdir()
    environment = {
        "TEST_BROKER_URL": url,
        "TEST_BROKER_NAME": name,
        "TEST_RESULT_BACKEND": results,
        "TEST_BIPSYNC": journey.bipsync.url,
        "TEST_CLIENT_SECRET": CLIENT_SECRET,
        "TEST_TRACKER": str(events),
    }
    rows = [expire(row) for row in BipsyncToken.objects.all()]
    generations = {row.pk: row.generation for row in rows}
    try:
        _publish(journey, environment)
        journey.keep("a queue", _messages(url, name))
        assert b"refresh_token" in journey.seen["a queue"]
        journey.bipsync.fail("token", FAILURES["server error"])
        # So the site's own task fails as well, whatever became of its row.
        journey.bipsync.fail("api", FAILURES["not allowed"], times=None)
        with Worker(
            "solo",
            journey.bipsync,
            journey.folder,
            journey.folder,
            environment=environment,
            database=journey.alias,
        ) as worker:
            worker.wait_until(
                lambda: (
                    any(reload(row).generation > generations[row.pk] for row in rows)
                    and any(reload(row).last_error for row in rows)
                    and bool(re.search(rb"RefreshUnavailable|AddressRefused", _told(events)))
                )
            )
        journey.bipsync.clear_failures()
        journey.keep("the worker's log", worker.told())
        journey.keep("an event of the worker's", _told(events))
        journey.keep("what the worker left", _messages(url, name) + _redis_values(name))
    finally:
        _clean(url, name)
    journey.mark()


def _publish(journey: Journey, environment: Mapping[str, str]) -> None:
    code = (
        "import django; django.setup(); from tests.celery_app import report; "
        "from bipsync_django import tasks; tasks.refresh_due_tokens(); "
        f"report.delay({BipsyncToken.objects.earliest('pk').pk})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**for_child(journey.alias), **environment},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    journey.keep("what a publisher says", done.stdout + done.stderr)


def _told(events: Path) -> bytes:
    return b"\n".join(file.read_bytes() for file in events.iterdir())


def _messages(url: str, name: str) -> bytes:
    """The messages that wait, as they are in the broker, and what they hold."""
    if url.startswith("redis:"):
        raw = _redis_values(name)
        bodies = [json.loads(one)["body"] for one in raw.splitlines() if one.startswith(b"{")]
        return raw + b"\n".join(base64.b64decode(body) for body in bodies)
    found = b""
    with Connection(url) as connection, connection.channel() as channel:
        queue = Queue(name)(channel)
        queue.declare()
        # Closing the channel puts them back.
        while (message := queue.get()) is not None:
            found += str(message.body).encode() + repr(message.headers).encode() + b"\n"
    return found


def _redis_values(name: str) -> bytes:
    found = b""
    with redis.Redis.from_url(f"{REDIS}/0") as client:
        for key in client.scan_iter(match=f"{name}:*"):
            found += key + b"\n" + _value(client, key) + b"\n"
    return found


def _value(client: Any, key: bytes) -> bytes:
    """What Redis keeps under ``key``, whatever its type."""
    readers: dict[bytes, Callable[[], Any]] = {
        b"list": lambda: client.lrange(key, 0, -1),
        b"hash": lambda: [part for pair in client.hgetall(key).items() for part in pair],
        b"set": lambda: client.smembers(key),
        b"zset": lambda: client.zrange(key, 0, -1),
        b"string": lambda: [client.get(key)],
    }
    return b"\n".join(readers[client.type(key)]())


def _clean(url: str, name: str) -> None:
    with redis.Redis.from_url(f"{REDIS}/0") as client:
        for key in client.scan_iter(match=f"{name}:*"):
            client.delete(key)
    if not url.startswith("redis:"):
        with Connection(url) as connection, connection.channel() as channel:
            Queue(name)(channel).delete()
            Exchange(name)(channel).delete()


# --- everything that is kept


def _look_around(journey: Journey) -> None:
    journey.keep("an event", journey.tracker.text())
    journey.keep("a log", (journey.folder / "site.log").read_bytes())
    connection = connections[journey.alias]
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")  # noqa: S608
            for row in cursor.fetchall():
                journey.keep(f"the table {table}", "\n".join(map(str, row)))
    if connection.vendor == "sqlite":
        for file in Path(connection.settings_dict["NAME"]).parent.glob(
            Path(connection.settings_dict["NAME"]).name + "*"
        ):
            journey.keep("the database's file", file.read_bytes())
    with redis.Redis.from_url(REDIS) as client:
        prefix = django_settings.CACHES["default"]["KEY_PREFIX"]
        for key in client.scan_iter(match=f"{prefix}:*"):
            journey.keep("the cache", key + b"\n" + _value(client, key))


def _needs_servers() -> None:
    try:
        redis.Redis.from_url(REDIS).ping()
        with Connection(RABBITMQ, connect_timeout=5) as connection:
            connection.ensure_connection(max_retries=1)
    except Exception as error:  # noqa: BLE001 - any reason is a reason to go without
        reason = f"Redis and RabbitMQ are needed ({type(error).__name__})."
        if databases.IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)


def _walk(journey: Journey, broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = _in_browser(journey)
    _connect(journey)
    _refresh(journey)
    _make_mistakes(journey, browser, monkeypatch)
    _break_pages(journey)
    _work(journey, broker)
    _run_commands(journey)
    lifecycle.disconnect(BipsyncToken.objects.earliest("pk"))
    _look_around(journey)


TRACKED = ("an event", "an event of the worker's", "the worker's log", "frames")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("database", "broker"),
    [
        pytest.param(*param.values, broker, marks=param.marks)
        if hasattr(param, "values")
        else (param, broker)
        for param, broker in zip(on("default", "postgresql"), BROKERS, strict=True)
    ],
    indirect=["database"],
)
def test_no_secret_is_anywhere_but_where_it_belongs(
    journey: Journey, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _needs_servers()
    _walk(journey, broker, monkeypatch)
    assert len(journey.marked) > 20, journey.marked.keys()
    for place in ("a page", "a mail", "a log", "a queue", "the cache", *TRACKED):
        assert len(journey.seen[place]) > 100, place
    assert hits(journey.seen, journey.marked) == []


@pytest.mark.parametrize("database", on("default"), indirect=True)
@pytest.mark.parametrize("leak", ["log", "event", "cache"])
def test_a_leak_on_the_way_is_found(journey: Journey, leak: str) -> None:
    _needs_servers()

    def careless(token: BipsyncToken, **kwargs: Any) -> None:
        secret = token.unseal("refresh_token")
        if leak == "log":
            site.info("refreshed: %s", secret)
        elif leak == "event":
            TokenEvent.objects.create(token=token, tenant="acme", name="x", detail=secret[:200])  # type: ignore[index]
        else:
            cache.set("mine", secret)

    token_refreshed.connect(careless)
    try:
        browser = Browser()
        browser.open(journey.bipsync.approve(browser.begin()))
        lifecycle.refresh(expire(BipsyncToken.objects.get()))
        journey.mark()
    finally:
        token_refreshed.disconnect(careless)
    _look_around(journey)
    assert hits(journey.seen, journey.marked)

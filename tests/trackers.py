"""A real sentry-sdk, set up to tell everything, which keeps what it would have sent."""

import asyncio
import io
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import django.shortcuts
import sentry_sdk
from asgiref.sync import async_to_sync
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import RequestFactory
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.integrations.django import DjangoIntegration
from sentry_sdk.transport import Transport

if TYPE_CHECKING:
    # Not for the worker, which starts before Django's apps are there.
    from tests.browser import Browser


class Kept(Transport):
    """Keeps envelopes; with a folder, as files there, for a test in another process."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.envelopes: list[bytes] = []
        self._folder = folder

    def capture_envelope(self, envelope: Envelope) -> None:
        content = envelope.serialize()
        self.envelopes.append(content)
        if self._folder is not None:
            (self._folder / f"{id(envelope)}-{len(self.envelopes)}.envelope").write_bytes(content)

    def text(self) -> bytes:
        return b"\n".join(self.envelopes)


def start(folder: Path | None = None, **more: Any) -> Kept:
    """Set Sentry up as a site might that wants to know everything."""
    kept = Kept(folder)
    options: dict[str, Any] = {
        "dsn": "https://key@tracker.invalid/1",
        "transport": kept,
        "default_integrations": True,
        "integrations": [DjangoIntegration(), CeleryIntegration()],
        "include_local_variables": True,
        "send_default_pii": True,
        "max_request_body_size": "always",
        "traces_sample_rate": 1.0,
        **more,
    }
    with warnings.catch_warnings():
        # It is still how most sites say it.
        warnings.filterwarnings("ignore", "The send_default_pii option", DeprecationWarning)
        sentry_sdk.init(**options)
    return kept


@contextmanager
def tracker(*modules: ModuleType, **more: Any) -> Iterator[Kept]:
    """Run Sentry in this process.

    ``modules`` have imported ``render`` already. A site calls ``init`` in its settings, and then
    they get Sentry's, which keeps the context of each template.
    """
    kept = start(**more)
    before = [(module, module.render) for module in modules]
    for module in modules:
        module.render = django.shortcuts.render  # type: ignore[attr-defined]
    try:
        # Django's test client makes no scopes of its own, as servers do.
        with sentry_sdk.isolation_scope(), sentry_sdk.new_scope():
            yield kept
    finally:
        for module, render in before:
            module.render = render  # type: ignore[attr-defined]
        sentry_sdk.get_client().close(timeout=0)
        sentry_sdk.get_global_scope().set_client(None)


# --- requests as servers make them


def by_wsgi(browser: "Browser", url: str) -> int:
    """Open ``url`` as gunicorn does; return the status. The browser keeps no cookie of it."""
    environ = _request(browser, url)
    # As gunicorn and uWSGI add.
    environ["RAW_URI"] = environ["REQUEST_URI"] = "/" + url.partition("//")[2].partition("/")[2]
    statuses: list[int] = []

    def start_response(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
        statuses.append(int(status.partition(" ")[0]))

    response = WSGIHandler()(environ, start_response)
    b"".join(response)
    response.close()
    return statuses[0]


def by_asgi(browser: "Browser", url: str) -> int:
    """Open ``url`` as uvicorn does; return the status. The browser keeps no cookie of it."""
    environ = _request(browser, url)
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": environ["PATH_INFO"],
        "raw_path": environ["PATH_INFO"].encode(),
        "query_string": environ["QUERY_STRING"].encode(),
        "headers": [
            (b"host", b"testserver"),
            (b"cookie", environ["HTTP_COOKIE"].encode()),
            (b"accept", b"text/html"),
        ],
        "server": ("testserver", 443),
        "client": ("127.0.0.1", 50_000),
    }
    statuses: list[int] = []
    received = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if received:
            return received.pop()
        # Django listens for the browser's going away.
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def run() -> None:
        handler: Any = ASGIHandler()
        await handler(scope, receive, send)

    async_to_sync(run)()
    return statuses[0]


def _request(browser: "Browser", url: str) -> dict[str, Any]:
    request = RequestFactory().get(url.partition("testserver")[2] or url, secure=True)
    cookies = "; ".join(f"{name}={morsel.value}" for name, morsel in browser.cookies.items())
    return {**request.environ, "HTTP_COOKIE": cookies, "wsgi.input": io.BytesIO()}


# --- what an exception carries along


def frames(error: BaseException | None) -> Iterator[FrameType]:
    """Yield the frames of an exception and of all that led to it."""
    todo, seen = [error], set[int]()
    while todo:
        link = todo.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        todo += [link.__cause__, link.__context__, *getattr(link, "exceptions", ())]
        for frame, _ in traceback.walk_tb(link.__traceback__):
            yield frame


def held(error: BaseException | None, *, apart_from: str = "") -> bytes:
    """Return the variables of these frames as text, without those of the file ``apart_from``."""
    assert error is not None
    return "\n".join(
        f"{frame.f_code.co_qualname} {name} = {value!r}"
        for frame in frames(error)
        if frame.f_code.co_filename != apart_from
        for name, value in frame.f_locals.items()
    ).encode(errors="replace")


# --- a trip, and the site's own templates


def marked(browser: "Browser", callback: str) -> dict[str, str]:
    """Return the secrets of a trip that comes back at ``callback``."""
    query = parse_qs(urlsplit(callback).query)
    from bipsync_django import flow

    (cookie,) = [v for name, v in browser.trips().items() if query["state"][0][:16] in name]
    trip = flow._open(cookie)
    assert trip is not None
    found = {"verifier": trip.verifier, "trip": cookie}
    return found | {name: query[name][0] for name in ("code", "state")}


def break_templates(settings: Any, folder: Path, *names: str) -> None:
    """Let the site have templates of its own, which fail while they are rendered."""
    for name in names:
        path = folder / "bipsync_django" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('{% url "a-view-that-is-not-there" %}')
    (engine,) = settings.TEMPLATES
    settings.TEMPLATES = [{**engine, "DIRS": [str(folder)]}]

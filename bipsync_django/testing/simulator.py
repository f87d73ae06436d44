"""The simulated Bipsync that tests and demonstrations talk to."""

import json
import os
import threading
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qsl

from . import api, browser, pages
from .dialect import Dialect
from .messages import (
    Answer,
    DropAfter,
    DropBefore,
    Failure,
    Html,
    RecordedRequest,
    Request,
    Response,
    Trickle,
    json_response,
)
from .people import SimulatedUser
from .provider import Provider, token_parameters
from .server import HttpServer
from .tls import Authority

Endpoint = Literal["token", "jwks", "api", "authorize"]

_PATHS: dict[str, Endpoint] = {
    "/oauth/authorize": "authorize",
    "/v1/oauth/token": "token",
    "/v1/oauth/jwks": "jwks",
}
_RECORDED_REQUESTS = 1000


class SimulatedBipsync(Provider):
    """A Bipsync tenant on a loopback address, over real HTTP, with or without TLS.

    Use it as a context manager, or call ``start()`` and ``stop()``. A stopped simulator keeps its
    grants and keys and starts again on the same port, which is how an outage is simulated.

    Args:
        client: the tenant's slug.
        client_id: the application's id.
        client_secret: the application's secret.
        redirect_uris: where the application may be returned to; compared character by character.
        host: the address to listen on.
        port: 0 for a free one.
        users: who has an account; by default three made-up people.
        access_token_lifetime: in seconds.
        refresh_token_lifetime: in seconds.
        dialect: ``"9"`` or ``"8"``, the major version of league/oauth2-server to sound like.
        state_file: where grants and signing keys outlive the process.
        tls: who certifies it; then it speaks https, and its settings name the ``CA_BUNDLE``.

    Attributes, beside those of ``Provider``, all of which can be changed while it runs:
        latency: seconds before the token endpoint looks at a request.
        jwks_latency: the same for the signing keys.
        calls: how many requests came in, by ``"token"``, ``"refresh"``, ``"code"``, ``"jwks"``,
            ``"api"`` and ``"authorize"``; failed ones count.
    """

    def __init__(
        self,
        *,
        client: str = "acme",
        client_id: str = "portal",
        client_secret: str = "portal-secret",  # noqa: S107
        redirect_uris: Iterable[str] = (),
        host: str = "127.0.0.1",
        port: int = 0,
        users: Iterable[SimulatedUser] | None = None,
        access_token_lifetime: int = 3600,
        refresh_token_lifetime: int = 2592000,
        dialect: Dialect = "9",
        state_file: str | os.PathLike[str] | None = None,
        tls: Authority | None = None,
    ) -> None:
        super().__init__(
            client_id=client_id,
            client_secret=client_secret,
            redirect_uris=redirect_uris,
            users=users,
            access_token_lifetime=access_token_lifetime,
            refresh_token_lifetime=refresh_token_lifetime,
            dialect=dialect,
        )
        self.client = client
        self.latency = 0.0
        self.jwks_latency = 0.0
        self.calls: Counter[str] = Counter()
        self._host = host
        self._port = port
        self._tls = tls
        self._server: HttpServer | None = None
        self._lock = threading.Lock()
        self._requests: deque[RecordedRequest] = deque(maxlen=_RECORDED_REQUESTS)
        self._failures: dict[str, deque[tuple[Failure, int | None]]] = {}
        self._state_file = Path(state_file) if state_file is not None else None
        if self._state_file is not None and self._state_file.exists():
            self.load(json.loads(self._state_file.read_text()))

    # Running

    def start(self) -> Self:
        """Listen, on the same port as before if it ran before.

        Raises:
            OSError: the port is taken.
        """
        if self._server is None:
            self.keys.resume()
            tls = None if self._tls is None else self._tls.context(self._host)
            self._server = HttpServer((self._host, self._port), self._exchange, tls)
            self._port = self._server.server_port
        return self

    def stop(self) -> None:
        """Release the port and hang up on everybody."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        self.keys.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """``http://HOST:PORT`` or ``https://HOST:PORT``, without a trailing slash."""
        if not self._port:
            raise RuntimeError("The simulator has no port yet: start() it first.")
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{self._host}:{self._port}"

    @property
    def authorize_url(self) -> str:
        """Where browsers are sent."""
        return f"{self.url}/oauth/authorize"

    @property
    def token_url(self) -> str:
        """Where codes and refresh tokens are exchanged."""
        return f"{self.url}/v1/oauth/token"

    @property
    def jwks_url(self) -> str:
        """Where the signing keys are published."""
        return f"{self.url}/v1/oauth/jwks"

    @property
    def api_url(self) -> str:
        """The base of the data API; its paths start with ``/v1/``."""
        return self.url

    @property
    def settings(self) -> dict[str, Any]:
        """What a site merges into its ``BIPSYNC`` setting to use this simulator."""
        return {
            "CLIENT": self.client,
            "CLIENT_ID": self.client_id,
            "CLIENT_SECRET": self.client_secret,
            "WEB_URL": self.url,
            "AUTHORIZE_URL": self.authorize_url,
            "TOKEN_URL": self.token_url,
            "JWKS_URL": self.jwks_url,
            "API_URL": self.api_url,
            **self._trust,
        }

    @property
    def _trust(self) -> dict[str, Any]:
        if self._tls is None:
            return {"ALLOW_INSECURE_LOOPBACK": True}
        return {"CA_BUNDLE": self._tls.bundle}

    # A browser's part

    def approve(self, authorize_url: str, *, user: str | SimulatedUser | None = None) -> str:
        """Sign in and allow, as a person would in a browser.

        Args:
            authorize_url: where the site sent the browser.
            user: an id, an e-mail address or a ``SimulatedUser``; by default the first.

        Returns:
            The callback URL with its code and state, not yet visited.

        Raises:
            ConsentError: the provider showed an error instead of a consent page.
        """
        user_id = self.find_user(user).id
        return self._answer_consent(authorize_url, "approve", user_id)

    def decline(self, authorize_url: str, *, user: str | SimulatedUser | None = None) -> str:
        """Cancel, as a person would in a browser; arguments and answer as for ``approve()``."""
        user_id = self.find_user(user).id
        return self._answer_consent(authorize_url, "deny", user_id)

    def _answer_consent(self, authorize_url: str, decision: str, user_id: str) -> str:
        ca_bundle = None if self._tls is None else self._tls.bundle
        return browser.decide(
            authorize_url, decision=decision, user_id=user_id, ca_bundle=ca_bundle
        )

    # Trouble on demand

    def fail(self, endpoint: Endpoint, how: Failure, *, times: int | None = 1) -> None:
        """Let coming requests to ``endpoint`` go wrong, after those queued earlier.

        Args:
            endpoint: ``"token"``, ``"jwks"``, ``"api"`` or ``"authorize"``.
            how: ``Answer``, ``Html``, ``DropBefore``, ``DropAfter`` or ``Trickle``.
            times: how many requests; ``None`` for all until ``clear_failures()``.
        """
        with self._lock:
            self._failures.setdefault(endpoint, deque()).append((how, times))

    def clear_failures(self) -> None:
        """Forget all failures that are still to come."""
        with self._lock:
            self._failures.clear()

    def _next_failure(self, endpoint: str) -> Failure | None:
        with self._lock:
            queued = self._failures.get(endpoint)
            while queued:
                how, times = queued.popleft()
                if times is None:
                    queued.appendleft((how, None))
                    return how
                if times > 0:
                    queued.appendleft((how, times - 1))
                    return how
            return None

    # What has been asked of it

    @property
    def requests(self) -> list[RecordedRequest]:
        """The latest requests, oldest first, at most 1,000."""
        with self._lock:
            return list(self._requests)

    def reset_calls(self) -> None:
        """Forget the counters and the recorded requests."""
        with self._lock:
            self.calls.clear()
            self._requests.clear()

    def _record(self, endpoint: str, request: Request) -> None:
        form = token_parameters(request)
        names = [endpoint]
        if endpoint == "token":
            grant_type = form.get("grant_type")
            if grant_type == "refresh_token":
                names.append("refresh")
            elif grant_type == "authorization_code":
                names.append("code")
        with self._lock:
            self.calls.update(names)
            self._requests.append(
                RecordedRequest(request.method, request.path, request.headers, form, request.peer)
            )

    # Answering

    def _exchange(self, request: Request) -> Response | None:
        endpoint = _PATHS.get(request.path) or ("api" if api.is_api_path(request.path) else None)
        if endpoint is None:
            return self._elsewhere(request)
        self._record(endpoint, request)
        self._pause({"token": self.latency, "jwks": self.jwks_latency}.get(endpoint, 0.0))
        failure = self._next_failure(endpoint)
        if isinstance(failure, DropBefore):
            return None
        if isinstance(failure, Answer | Html):
            return failure.response()
        response = self._answer(endpoint, request)
        if isinstance(failure, DropAfter):
            return None
        if isinstance(failure, Trickle):
            return Response(
                response.status,
                response.body,
                response.content_type,
                response.headers,
                failure.seconds_per_byte,
            )
        return response

    def _pause(self, seconds: float) -> None:
        server = self._server
        if seconds > 0 and server is not None:
            server.stopping.wait(seconds)

    def _elsewhere(self, request: Request) -> Response:
        if request.path == "/" and request.method in ("GET", "HEAD"):
            connected = self.store.users_with_grants()
            return pages.home(
                tenant=self.client,
                url=self.url,
                client_id=self.client_id,
                redirect_uris=self.redirect_uris,
                connected=[user for user in self.users.values() if user.id in connected],
            )
        if request.path == "/withdraw" and request.method == "POST":
            user_id = dict(parse_qsl(request.body.decode("utf-8", "replace"))).get("user", "")
            if user_id in self.users:
                self.withdraw(user_id)
            return Response(303, headers={"Location": "/"})
        return json_response({"error": "not_found"}, 404)

    def _answer(self, endpoint: str, request: Request) -> Response:
        if endpoint == "api":
            return api.answer(self, request)
        allowed = {"authorize": ("GET", "POST"), "token": ("POST",), "jwks": ("GET",)}[endpoint]
        if request.method not in allowed:
            allow = {"Allow": ", ".join(allowed)}
            return json_response({"error": "method_not_allowed"}, 405, headers=allow)
        if endpoint == "token":
            return self.answer_token_request(request)
        if endpoint == "jwks":
            return json_response(self.keys.jwks())
        if request.method == "POST":
            return self._decide(request)
        return self._ask(request)

    def _ask(self, request: Request) -> Response:
        checked = self.check_authorization(request.query)
        if isinstance(checked, Response):
            return checked
        client_id, redirect_uri, scopes = checked
        return pages.consent(
            application=client_id,
            tenant=self.client,
            scopes=scopes,
            users=list(self.users.values()),
            redirect_uri=redirect_uri,
            request_id=self.store.open_consent(request.query),
        )

    def _decide(self, request: Request) -> Response:
        form = dict(parse_qsl(request.body.decode("utf-8", "replace")))
        query = self.store.close_consent(form.get("request_id", ""))
        if query is None:
            return pages.message(
                "This page has been used already",
                "Go back to the site that you came from and start the sign-in again.",
            )
        if form.get("decision") != "approve":
            return self.deny_authorization(query)
        user = self.users.get(form.get("user", ""))
        if user is None:
            return pages.message(
                "Nobody was chosen",
                "Go back to the site that you came from, start again and choose a person.",
            )
        return self.approve_authorization(query, user)

    # Persistence

    def changed(self) -> None:
        """Write the state file, readable by its owner only, replacing it in one step."""
        if self._state_file is None:
            return
        with self.store.lock:
            temporary = self._state_file.with_name(self._state_file.name + ".new")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(self.dump(), file)
            temporary.replace(self._state_file)

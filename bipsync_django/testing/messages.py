"""HTTP messages and the ways in which an answer can go wrong, as plain values."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

JSON = "application/json"
HTML = "text/html; charset=UTF-8"


@dataclass(frozen=True)
class Request:
    """One request as it arrived.

    ``headers`` is case-insensitive. ``query`` is the raw query string. ``peer`` is the client's
    address and port, one for each connection.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""
    peer: tuple[str, int] = ("", 0)


@dataclass(frozen=True)
class Response:
    """One answer. ``pace`` is the number of seconds that each byte of the body takes."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    pace: float = 0.0


def json_response(
    payload: object,
    status: int = 200,
    *,
    content_type: str = JSON,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an answer that holds ``payload`` as JSON."""
    body = json.dumps(payload, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return Response(status, body, content_type, headers or {})


@dataclass(frozen=True)
class RecordedRequest:
    """A request that the simulator received, for assertions.

    ``form`` holds the parameters of a form or JSON body, secrets included. Requests with the same
    ``peer``, an address and a port, came over the same connection.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    form: Mapping[str, object]
    peer: tuple[str, int] = ("", 0)


@dataclass(frozen=True)
class Answer:
    """Answer with exactly this; the provider does nothing (no pair is rotated)."""

    status: int
    body: bytes | str | Mapping[str, object] = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        """Return the answer as it goes over the wire."""
        if isinstance(self.body, bytes):
            body = self.body
        elif isinstance(self.body, str):
            body = self.body.encode()
        else:
            body = json.dumps(self.body).encode()
        return Response(self.status, body, self.content_type, self.headers)


@dataclass(frozen=True)
class Html:
    """Answer with a proxy's HTML error page; the provider does nothing."""

    status: int = 502

    def response(self) -> Response:
        """Return the answer as it goes over the wire."""
        page = (
            f"<html><head><title>{self.status}</title></head>"
            f"<body><center><h1>{self.status}</h1></center><hr><center>proxy</center></body></html>"
        )
        return Response(self.status, page.encode(), HTML)


@dataclass(frozen=True)
class DropBefore:
    """Close the connection before the provider does anything."""


@dataclass(frozen=True)
class DropAfter:
    """Let the provider do its work (a pair is rotated), then close without a byte of answer."""


@dataclass(frozen=True)
class Trickle:
    """Let the provider do its work, then send the body a byte at a time.

    ``seconds_per_byte`` is the pause before each byte.
    """

    seconds_per_byte: float


Failure = Answer | Html | DropBefore | DropAfter | Trickle

"""Callbacks that must sign nobody in, from a seed and from what real trips have left behind."""

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from django.http import QueryDict

HERE = "/bipsync/callback/"
ELSEWHERE = "/bipsync/callback/globex/"

_BASE64URL = string.ascii_letters + string.digits + "-_"
_CONTROLS = "\x00\t\n\r \x0b\x1b\x7f\x85\xa0\u2028\u200b\u202e\ufeff\ufffd\ud7ff\U0001f600"
_ERRORS = (
    *("access_denied", "invalid_request", "invalid_scope", "server_error", "unauthorized_client"),
    *("temporarily_unavailable", "unsupported_response_type", "", "x" * 9000, "<b>", "\x00", "[]"),
)


class Callback(NamedTuple):
    """Where a browser is sent, with which query string (in Latin-1, as it is on the wire)."""

    path: str
    query: str


@dataclass(frozen=True)
class Loot:
    """Real states and codes. The first two belong together, and to the browser that is tried."""

    state: str
    code: str
    other_tabs_state: str
    other_tabs_code: str
    other_browsers_state: str
    other_browsers_code: str
    other_tenants_state: str
    other_tenants_code: str
    spent_state: str

    def is_good(self, callback: Callback) -> bool:
        """Whether it is what Bipsync itself sent this browser back with."""
        if callback.query.count("&") >= 1000:
            return False  # nor does Django read it
        query = QueryDict(callback.query)
        pairs = {(self.state, self.code, HERE), (self.other_tabs_state, self.other_tabs_code, HERE)}
        pairs.add((self.other_tenants_state, self.other_tenants_code, ELSEWHERE))
        return (
            len(query.getlist("state")) == len(query.getlist("code")) == 1
            and (query["state"], query["code"], callback.path) in pairs
            and "error" not in query
        )


class Forger:
    def __init__(self, seed: object) -> None:
        self.random = random.Random(str(seed))  # noqa: S311 - to be repeated, not to be secret
        self.choose: Callable[[Sequence[Any]], Any] = self.random.choice

    def text(self, length: int, alphabet: str = _BASE64URL) -> str:
        return "".join(self.random.choices(alphabet, k=length))

    def noise(self) -> str:
        return str(
            self.choose(
                (
                    *("", "1", "null", "[]", "%00", "' OR 1=1 --", "../..", "\x00", "é", "\ud7ff"),
                    self.text(43),
                    self.text(self.random.randint(1, 60), string.printable),
                    self.text(self.random.randint(1, 12), _CONTROLS),
                )
            )
        )

    def no_state(self, loot: Loot) -> str:
        """Return something that is no state of this browser's."""
        states = (loot.other_browsers_state, loot.spent_state, self.text(43), self.noise())
        return str(self.choose(states))

    def decoys(self) -> list[tuple[str, str]]:
        names = ("iss", "resumed", "next", "scope", "session_state", "x", "error_uri", "tenant")
        chosen = self.random.sample(names, self.random.randint(0, 4))
        return [(name, self.noise()) for name in chosen]

    def shuffled(self, pairs: Sequence[tuple[str, str]]) -> str:
        return urlencode(self.random.sample(pairs, len(pairs)), errors="surrogatepass")


def forged(name: str, forger: Forger, loot: Loot) -> Callback:
    """Return a callback of one of ``KINDS``."""
    while True:
        made = KINDS[name](forger, loot)
        callback = made if isinstance(made, Callback) else Callback(HERE, made)
        if not loot.is_good(callback):
            return callback


KINDS: dict[str, Callable[[Forger, Loot], Callback | str]] = {}


def _kind(
    forge: Callable[[Forger, Loot], Callback | str],
) -> Callable[[Forger, Loot], Callback | str]:
    KINDS[forge.__name__] = forge
    return forge


@_kind
def incomplete(forger: Forger, loot: Loot) -> str:
    left = forger.choose(
        (
            [],
            [("code", loot.code)],
            [("state", forger.choose((loot.state, forger.no_state(loot))))],
            [("state", loot.state), ("code", "")],
            [("state", ""), ("code", loot.code)],
            [("State", loot.state), ("code", loot.code)],
            [("state ", loot.state), ("code", loot.code)],
        )
    )
    return forger.shuffled([*left, *forger.decoys()])


@_kind
def doubled(forger: Forger, loot: Loot) -> str:
    pairs = [("state", loot.state), ("code", loot.code)]
    name, own = forger.choose(pairs)
    value = forger.choose((own, loot.other_tabs_state, loot.other_browsers_code, forger.noise()))
    more = [(name, value)] * forger.random.randint(1, 4)
    return forger.shuffled([*pairs, *more, *forger.decoys()])


@_kind
def oversized(forger: Forger, loot: Loot) -> str:
    long = forger.text(8) * int(10 ** forger.random.uniform(3.1, 4) / 8)
    pairs = forger.choose(
        (
            [("state", long), ("code", loot.code)],
            [("state", loot.state + long), ("code", loot.code)],
            [("state", loot.state), ("code", loot.code + "A" * 8193)],
            [("state", forger.no_state(loot)), ("code", long), ("x", long)],
            [("error", long), ("state", forger.no_state(loot))],
            [(long, long), ("code", loot.code)],
            [("x", "")] * forger.choose((900, 1100)) + [("code", loot.code)],
        )
    )
    return forger.shuffled(pairs)


@_kind
def encoded(forger: Forger, loot: Loot) -> str:
    place = forger.random.randrange(len(loot.state))
    head, letter, tail = loot.state[:place], loot.state[place], loot.state[place + 1 :]
    number = ord(letter)
    state = forger.choose(
        (
            f"{head}%25{number:02x}{tail}",
            f"{head}%u{number:04x}{tail}",
            f"{head}%c1%{0x80 | number & 0x3F:02x}{tail}",
            f"{head}&#{number};{tail}",
            f"{head}%{tail}",
            f"{head}%{letter}%{tail}",
            f"{head}+{letter}{tail}",
            f"{head}%ed%a0%80{tail}",
            f"{head}{quote(chr(number + 0xFEE0))}{tail}",
            quote(loot.state.encode("utf-16")),
            loot.state.encode().hex(),
            loot.state.swapcase(),
            quote(f'"{loot.state}"'),
            "%FF%FE" + loot.state,
        )
    )
    assembled: str = forger.choose(
        (
            f"code={loot.code}&state={state}",
            f"code={loot.code};state={loot.state}",
            f"code={loot.code}&amp;state={loot.state}",
            f"code={loot.code}%26state={loot.state}",
            f"code%3D{loot.code}&state%3D{loot.state}",
            f"{{%22code%22:%22{loot.code}%22,%22state%22:%22{loot.state}%22}}",
        )
    )
    return f"{assembled}&{forger.shuffled(forger.decoys())}"


@_kind
def bracketed(forger: Forger, loot: Loot) -> str:
    depth = forger.random.randint(1, 200)
    suffix = forger.choose(("[]", "[0]", "[$ne]", "[a][b]", "[" * depth, "[]" * depth, ".x", "]["))
    which = forger.random.randrange(3)
    state = "state" + (suffix if which != 1 else "")
    code = "code" + (suffix if which != 0 else "")
    return forger.shuffled([(state, loot.state), (code, loot.code), *forger.decoys()])


@_kind
def mistaken(forger: Forger, loot: Loot) -> Callback:
    """Codes and states that are real, and do not belong together, or not to this browser."""
    state = forger.choose((loot.other_browsers_state, loot.spent_state))
    codes = (
        *(loot.code, loot.other_tabs_code, loot.other_browsers_code, loot.other_tenants_code),
        forger.text(400, "0123456789abcdef"),
    )
    pairs = [("state", state), ("code", forger.choose(codes)), *forger.decoys()]
    return Callback(forger.choose((HERE, ELSEWHERE)), forger.shuffled(pairs))


@_kind
def misplaced(forger: Forger, loot: Loot) -> Callback:
    """What one tenant sent, at another one's callback."""
    acme = (ELSEWHERE, loot.state, loot.code)
    globex = (HERE, loot.other_tenants_state, loot.other_tenants_code)
    nowhere = (f"/bipsync/callback/{forger.text(5)}/", loot.state, loot.code)
    path, state, code = forger.choose((acme, globex, nowhere))
    pairs = [("state", state), forger.choose((("code", code), ("error", forger.choose(_ERRORS))))]
    return Callback(path, forger.shuffled([*pairs, *forger.decoys()]))


@_kind
def damaged(forger: Forger, loot: Loot) -> str:
    """A real query string with some of its characters changed."""
    query = f"state={loot.state}&code={loot.code}"
    # Behind the state, the damage is Bipsync's to find; "wrong_code" does some of that.
    place = forger.random.randrange(len(loot.state) + 7)
    patch = forger.text(forger.random.randint(1, 5), _BASE64URL + "%&=;+[]")
    left = "" if forger.random.random() < 0.2 else query[place + forger.random.randint(0, 4) :]
    made = query[:place] + patch + left
    return made if QueryDict(made).getlist("state") != [loot.state] else patch + query[place + 1 :]


@_kind
def controls(forger: Forger, loot: Loot) -> str:
    place = forger.random.randint(0, len(loot.state))
    dirt = forger.text(forger.random.randint(1, 3), _CONTROLS)
    state = loot.state[:place] + dirt + loot.state[place:]
    pairs = forger.choose(
        (
            [("state", state), ("code", loot.code)],
            [("state" + dirt, loot.state), ("code", loot.code)],
            [("state", loot.state), (dirt + "code", loot.code)],
            [("state", dirt), ("code", dirt)],
        )
    )
    return forger.shuffled([*pairs, *forger.decoys()])


@_kind
def erroneous(forger: Forger, loot: Loot) -> str:
    """An error, mostly beside a code that is good."""
    pairs = [("error", forger.choose(_ERRORS)), ("error_description", forger.noise())]
    pairs += forger.choose(([("code", loot.code)], [("code", loot.code), ("error", "x")], []))
    pairs.append(("state", forger.choose((loot.state, loot.state, forger.no_state(loot)))))
    return forger.shuffled([*pairs, *forger.decoys()])


@_kind
def implicit(forger: Forger, loot: Loot) -> str:
    """Tokens in the place of a code, and the issuer of RFC 9207."""
    pairs = [
        ("state", forger.choose((loot.state, forger.no_state(loot), forger.no_state(loot)))),
        ("access_token", "eyJhbGciOiJub25lIn0.e30."),
        ("id_token", "eyJhbGciOiJub25lIn0.e30."),
        ("token_type", "Bearer"),
        ("iss", forger.choose(("https://acme.bipsync.com", "https://evil.example", "", "\x00"))),
    ]
    return forger.shuffled([pairs[0], *forger.random.sample(pairs[1:], 3)])


@_kind
def wrong_code(forger: Forger, loot: Loot) -> str:
    """The state is right, and so Bipsync has to say that the code is not."""
    place = forger.random.randrange(len(loot.code))
    code = forger.choose(
        (
            *(loot.other_tabs_code, loot.other_browsers_code, loot.other_tenants_code),
            loot.code[:place] or "x",
            loot.code[:place] + forger.choose(_CONTROLS) + loot.code[place:],
            loot.code[::-1],
            loot.code + "&grant_type=refresh_token",
            loot.code + "\r\nX-Injected: 1",
            forger.text(forger.random.randint(1, 400)),
            forger.noise() or "x",
        )
    )
    return forger.shuffled([("state", loot.state), ("code", code), *forger.decoys()])

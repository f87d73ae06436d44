"""Nothing secret in any log record, exception or error report, whatever happens to a token."""

import dataclasses
import importlib
import json
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.cache import SessionStore
from django.views.debug import ExceptionReporter
from requests.structures import CaseInsensitiveDict

from bipsync_django import error_reports, redaction
from bipsync_django.conf import Tenant, get_tenant
from bipsync_django.exceptions import (
    BipsyncError,
    ConfigurationError,
    SecretUnreadable,
    TokenRefused,
)
from bipsync_django.fields import Sealed, seal
from bipsync_django.middleware import BipsyncSessionMiddleware
from bipsync_django.oauth import client
from bipsync_django.oauth.claims import validate_access_token
from bipsync_django.oauth.client import (
    TokenPair,
    authorization_url,
    create_verifier,
    exchange_code,
    refresh_pair,
)
from bipsync_django.testing import Answer, DropAfter, DropBefore, Html, SimulatedBipsync, Trickle

REDIRECT_URI = "https://portal.example/bipsync/callback/"

pytestmark = pytest.mark.usefixtures("local_budget")


class Records(logging.Handler):
    """Keeps everything that any logger says, as every kind of formatter could show it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.shown: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "process_request_thread" in (record.threadName or ""):
            return  # the simulated provider's own oauthlib, which logs the tokens that it makes
        shown = [record.getMessage(), repr(record.args), repr(vars(record))]
        if record.exc_info:
            shown += everything(record.exc_info[1])
        self.shown += shown


def everything(error: BaseException | None) -> list[str]:
    """Return what can be shown of an exception and of all that led to it, hidden parts too."""
    shown: list[str] = []
    seen: list[BaseException] = []
    while error is not None and not any(error is one for one in seen):
        seen.append(error)
        shown += [str(error), repr(error), repr(error.args), repr(vars(error))]
        shown += traceback.format_exception(error)
        error = error.__cause__ or error.__context__
    return shown


@pytest.fixture
def records() -> Iterator[list[str]]:
    handler, root = Records(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler.shown
    root.setLevel(level)
    root.removeHandler(handler)


@pytest.fixture
def tenant(bipsync: SimulatedBipsync) -> Tenant:
    bipsync.redirect_uris.add(REDIRECT_URI)
    return dataclasses.replace(get_tenant(), http_timeout=2.0)


def consent(bipsync: SimulatedBipsync, tenant: Tenant, verifier: str) -> str:
    url = authorization_url(
        tenant, state="st-1", verifier=verifier, redirect_uri=REDIRECT_URI, scopes=tenant.scopes
    )
    return dict(parse_qsl(urlsplit(bipsync.approve(url)).query))["code"]


def assert_hidden(secrets: list[str], shown: list[str]) -> None:
    text = "\n".join(shown)
    for secret in secrets:
        # The start of a token would be enough to find it by.
        assert secret[:24] not in text


def test_an_exchange_and_a_refresh_that_succeed_log_no_secret(
    bipsync: SimulatedBipsync, tenant: Tenant, records: list[str]
) -> None:
    verifier = create_verifier()
    code = consent(bipsync, tenant, verifier)
    del records[:]  # the simulated browser's own requests, code included
    first = exchange_code(tenant, code=code, verifier=verifier, redirect_uri=REDIRECT_URI)
    assert first.refresh_token is not None
    second = refresh_pair(tenant, first.refresh_token)
    assert second.refresh_token is not None
    validate_access_token(second.access_token, tenant, from_provider=True)
    assert any("/v1/oauth/token" in line for line in records), "something was logged at all"
    assert_hidden(
        [
            bipsync.client_secret,
            code,
            verifier,
            first.access_token,
            first.refresh_token,
            second.access_token,
            second.refresh_token,
        ],
        [*records, repr(first), repr(second), repr(tenant)],
    )


FAILURES: dict[str, Any] = {
    "dead": Answer(400, {"error": "invalid_grant"}),
    "dead in 8.x": Answer(
        401, {"error": "invalid_request", "error_description": "The refresh token is invalid."}
    ),
    "bad secret": Answer(401, {"error": "invalid_client"}),
    "not allowed": Answer(403),
    "redirect": Answer(307, headers={"Location": "http://127.0.0.1:9/?echo"}),
    "html": Html(200),
    "server error": Html(500),
    "not json": Answer(200, "def50200 eyJ0"),
    "bad token": Answer(200, {"access_token": "eyJ0 x", "token_type": "bearer"}),
    "bad charset": Answer(200, {"access_token": 7}, "application/json; charset=idna"),
    "too large": Answer(200, "x" * 200_000),
    "bad header": Answer(429, headers={"Retry-After": "def50200"}),
    "dropped before": DropBefore(),
    "dropped after": DropAfter(),
    "slow": Trickle(1),
}


@pytest.mark.parametrize("how", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("what", ["code", "refresh"])
def test_an_exchange_or_refresh_that_fails_shows_no_secret_in_logs_or_errors(
    how: Any, what: str, bipsync: SimulatedBipsync, tenant: Tenant, records: list[str]
) -> None:
    if isinstance(how, Trickle):
        tenant = dataclasses.replace(tenant, http_timeout=0.3)
    pair, verifier = bipsync.issue_pair(), create_verifier()
    code = consent(bipsync, tenant, verifier)
    calls: dict[str, Callable[[], TokenPair]] = {
        "code": lambda: exchange_code(
            tenant, code=code, verifier=verifier, redirect_uri=REDIRECT_URI
        ),
        "refresh": lambda: refresh_pair(tenant, pair.refresh_token),
    }
    del records[:]
    bipsync.fail("token", how)
    with pytest.raises(BipsyncError) as caught:
        calls[what]()
    secrets = [bipsync.client_secret, code, verifier, pair.access_token, pair.refresh_token]
    assert_hidden(secrets, [*records, *everything(caught.value)])


def test_a_provider_that_is_not_there_shows_no_secret(
    bipsync: SimulatedBipsync, tenant: Tenant, records: list[str]
) -> None:
    pair = bipsync.issue_pair()
    bipsync.stop()
    with pytest.raises(BipsyncError) as caught:
        refresh_pair(tenant, pair.refresh_token)
    assert_hidden(
        [bipsync.client_secret, pair.refresh_token], [*records, *everything(caught.value)]
    )


def test_what_the_provider_says_in_an_error_is_not_repeated(
    bipsync: SimulatedBipsync, tenant: Tenant, records: list[str]
) -> None:
    pair = bipsync.issue_pair()
    for status, error in ((400, "invalid_grant"), (401, "invalid_client"), (400, "x" * 40)):
        echo = f"you sent {pair.refresh_token} with {bipsync.client_secret}"
        answer = {"error": error, "error_description": echo, "hint": echo, "message": echo}
        bipsync.fail("token", Answer(status, answer))
        with pytest.raises(BipsyncError) as caught:
            refresh_pair(tenant, pair.refresh_token)
        shown = [*records, *everything(caught.value)]
        assert_hidden([bipsync.client_secret, pair.refresh_token, "you sent", "x" * 40], shown)


def test_a_token_that_is_refused_is_not_shown(
    bipsync: SimulatedBipsync, tenant: Tenant, records: list[str]
) -> None:
    claims = bipsync.access_token_claims()
    for token in (
        bipsync.sign({**claims, "exp": 1}),
        bipsync.sign({**claims, "sub": ""}),
        bipsync.sign(claims, algorithm="none"),
        bipsync.sign(claims)[:-8] + "AAAAAAAA",
        bipsync.sign(claims) + "==",
        "not-a-token-but-secret-all-the-same",
    ):
        with pytest.raises(TokenRefused) as caught:
            validate_access_token(token, tenant)
        assert_hidden(
            [part for part in token.split(".") if part], [*records, *everything(caught.value)]
        )


# --- Django's report of an error shows the local variables of every frame


def report(error: BaseException) -> list[str]:
    """Return what a site's administrators get by mail, without this test's own frames."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == str(Path(__file__)):
        frames = frames.tb_next
    assert frames is not None, "the error comes from the package"
    reporter = ExceptionReporter(None, type(error), error, frames)
    assert any("bipsync_django" in frame["filename"] for frame in reporter.get_traceback_frames())
    return [reporter.get_traceback_html(), reporter.get_traceback_text()]


REPORTED: dict[str, Any] = {
    "server error": Html(500),
    "dropped": DropAfter(),
    "bad secret": Answer(401, {"error": "invalid_client"}),
    "not json": Answer(200, "x"),
}


@pytest.mark.parametrize("how", REPORTED.values(), ids=REPORTED)
def test_the_report_of_a_refresh_that_fails_shows_no_secret(
    how: Any, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    pair = bipsync.issue_pair()
    bipsync.fail("token", how)
    with pytest.raises(BipsyncError) as caught:
        refresh_pair(tenant, pair.refresh_token, client_secret=bipsync.client_secret)
    assert_hidden([bipsync.client_secret, pair.refresh_token], report(caught.value))


@pytest.mark.parametrize("how", REPORTED.values(), ids=REPORTED)
def test_the_report_of_a_code_that_fails_shows_no_secret(
    how: Any, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    verifier = create_verifier()
    code = consent(bipsync, tenant, verifier)
    bipsync.fail("token", how)
    with pytest.raises(BipsyncError) as caught:
        exchange_code(tenant, code=code, verifier=verifier, redirect_uri=REDIRECT_URI)
    assert_hidden([bipsync.client_secret, code, verifier], report(caught.value))


@pytest.mark.parametrize("what", ["code", "refresh"])
def test_the_report_of_a_mistake_of_ours_shows_no_new_pair(
    what: str, bipsync: SimulatedBipsync, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = {"access_token": "eyJ0." + "n" * 40, "refresh_token": "def50200" + "n" * 40}

    def mistake(token: Any, session: Any) -> TokenPair:
        raise AssertionError

    monkeypatch.setattr(client, "_pair", mistake)
    bipsync.fail("token", Answer(200, new))
    with pytest.raises(AssertionError) as caught:
        if what == "code":
            exchange_code(tenant, code="c", verifier="v" * 43, redirect_uri=REDIRECT_URI)
        else:
            refresh_pair(tenant, "def50200old")
    assert "mistake" in report(caught.value)[1]
    assert_hidden(list(new.values()), report(caught.value))


def test_the_report_of_a_browser_that_is_not_sent_shows_no_verifier(tenant: Tenant) -> None:
    verifier = create_verifier()
    with pytest.raises(ConfigurationError) as caught:
        authorization_url(
            tenant, state="s", verifier=verifier, redirect_uri="http://portal.example/", scopes=[]
        )
    assert_hidden([verifier], report(caught.value))


def test_the_report_of_a_token_that_is_refused_does_not_show_it(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    claims = bipsync.access_token_claims()
    for token in (bipsync.sign(claims)[:-8] + "AAAAAAAA", bipsync.sign({**claims, "exp": 1})):
        with pytest.raises(TokenRefused) as caught:
            validate_access_token(token, tenant)
        assert_hidden(token.split("."), report(caught.value))


def test_the_report_of_a_moved_ciphertext_does_not_show_whose_it_is() -> None:
    for sealed in (seal("def50200" + "s" * 40, "one row"), seal("def50200" + "s" * 40)):
        with pytest.raises(SecretUnreadable) as caught:
            Sealed(sealed.ciphertext).unseal("another row")
        assert_hidden(["def50200" + "s" * 40], report(caught.value))


def test_the_report_of_a_secret_that_cannot_be_sealed_does_not_show_it() -> None:
    with pytest.raises(TypeError) as caught:
        seal("def50200" + "s" * 40, object())  # type: ignore[arg-type]
    assert_hidden(["def50200" + "s" * 40], report(caught.value))


def test_the_filter_silences_the_library_at_debug_and_lets_warnings_through(
    records: list[str],
) -> None:
    redaction.install()
    redaction.install()
    library = logging.getLogger("requests_oauthlib.oauth2_session")
    assert len(library.filters) == 1
    library.debug("s3cret %s", "token")
    assert not any("s3cret" in line for line in records)
    library.warning("heard")
    assert any("heard" in line for line in records)


def test_a_level_set_by_the_site_does_not_undo_the_filter(records: list[str]) -> None:
    library = logging.getLogger("requests_oauthlib.oauth2_session")
    level = library.level
    library.setLevel(logging.DEBUG)
    library.debug("s3cret")
    library.setLevel(level)
    assert not any("s3cret" in line for line in records)


# --- what looks like a secret is taken out wherever it is

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"
REFRESH = "def50200" + "0123456789abcdef" * 8
# Reports show the lines of this file.
SESSION = "opaque" * 4
HELD = "held" * 6
CODE = "code" * 6
TRIP = "gAAAAA" + "t" * 200


@pytest.mark.parametrize(
    "text",
    [
        JWT,
        REFRESH,
        f"Authorization: Bearer {'opaque' * 5}",
        f"{{'Authorization': 'Bearer {'opaque' * 5}'}}",
        "GET /bipsync/callback/?code=opaqueopaque&state=opaqueopaque HTTP/1.1",
        "client_id=portal&client_secret=opaqueopaque&code_verifier=opaqueopaque",
        '{"access_token": "opaqueopaque", "refresh_token": "opaqueopaque"}',
        "{'client_secret': 'opaqueopaque'}",
        "{'client_secret': b'opaqueopaque'}",
        "next=%2Fcallback%3Fcode%3Dopaqueopaque",
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str) -> None:
    shown = redaction.redact(f"before {text} after")
    assert "opaque" not in shown
    assert JWT[:24] not in shown
    assert REFRESH[:24] not in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")


@pytest.mark.parametrize(
    "text",
    ["The status code was 400.", "Refused: unknown_state (the state is not one of ours)", "eyJ"],
)
def test_what_does_not_is_left_alone(text: str) -> None:
    assert redaction.redact(text) == text


GUARDED = ["bipsync_django.api", "bipsync_django.lifecycle.protocol", "django.request"]


@pytest.mark.parametrize("name", [*GUARDED, "urllib3.connectionpool", "django.server"])
def test_a_logger_that_says_too_much_is_redacted(
    name: str, records: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "propagate", True)
    logger.warning("a token: %s", JWT)
    logger.warning("a token: %s" % JWT)  # noqa: UP031
    logger.warning("%(token)s", {"token": JWT})
    try:
        raise ValueError(JWT)
    except ValueError:
        logger.exception("failed")
    assert "failed" in "".join(records)
    assert_hidden([JWT], records)


def test_every_logger_of_ours_is_guarded() -> None:
    source = Path(redaction.__file__).parent
    for path in source.rglob("*.py"):
        if "getLogger(__name__)" in path.read_text():
            parts = path.relative_to(source.parent).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            assert redaction._REDACTION in logging.getLogger(name).filters, name


def test_an_error_that_is_its_own_cause_stops_nothing(records: list[str]) -> None:
    try:
        raise ValueError("round and round")
    except ValueError as error:
        with pytest.raises(ValueError, match="round") as caught:
            raise error from error
    outer = RuntimeError("wrapped")
    outer.__cause__, caught.value.__cause__ = caught.value, outer
    for error_ in (caught.value, outer):
        logging.getLogger("django.request").error("failed", exc_info=error_)
        redaction._clear_frames(error_, None)
    assert any("round and round" in line for line in records)


def test_notes_and_groups_of_errors_are_redacted(records: list[str]) -> None:
    noted = ValueError("refused")
    noted.add_note(f"Authorization: Bearer {JWT}")
    group = ExceptionGroup("several", [ValueError("one"), ExceptionGroup("in", [TypeError(JWT)])])
    for error in (noted, group):
        logging.getLogger("django.request").error("failed", exc_info=error)
    assert sum("Traceback" in line or "refused" in line for line in records)
    assert_hidden([JWT], records)


@pytest.mark.parametrize(
    "text",
    [
        "eyJ" * 70_000,
        "eyJaaaaaa." * 20_000,
        "eyJaaaaaa.eyJaaaaaa" * 10_000,
        "code='" * 30_000,
        "code=\"code='" * 20_000,
        "code%22:%22" * 20_000,
        "def50200" * 25_000,
        "gAAAAA" * 35_000,
        "authorization:" * 15_000,
        "code" * 50_000,
        "code = " * 30_000,
        "'code': [" * 20_000,
        "code=['code=['," * 13_000,
        "code=[[]" * 20_000,
        "code={(" * 25_000,
        "".join("code=" + "\\" * (number % 200) + "'" for number in range(2_000)),
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.timeout(60)
def test_no_text_stops_a_process(text: str) -> None:
    # With a pattern that starts over and over, the first of them takes five minutes.
    redaction.redact(text * 2)


@pytest.mark.parametrize(
    "text",
    [
        "{{'client_secret': '{}'}}",
        "[('client_secret', '{}')]",
        '{{\\"client_secret\\": \\"{}\\"}}',
        "%22client_secret%22%3A%22{}%22",
        "Authorization: Basic {}",
        "{{'Authorization': 'Basic {}'}}",
        "id_token={}",
        "code='{}",
    ],
)
def test_a_secret_is_redacted_to_its_end_however_it_is_written(text: str) -> None:
    for secret in ("Zx9aQrestOfIt", "Zx9;Q)rest,of}it"):
        if "'" in text or '"' in text or secret.isalnum():
            said = redaction.redact(text.format(secret))
            closed = text != "code='{}"
            assert ("rest" not in said) or (not closed and ";" in secret), said
            assert "Zx9" not in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"access_token={JWT}", "access_token=#"),
        (f"[access_token={JWT}]", "[access_token=#]"),
        (f"access_token=[{JWT}]", "access_token=#"),
        (f"{{'access_token': '{JWT}'}}", "{'access_token': '#'}"),
        (
            "<QueryDict: {'code': ['opaque'], 'state': ['opaque', 'opaque']}>",
            "<QueryDict: {'code': #, 'state': #}>",
        ),
        ("{'code': [b'opa]que'], 'x': [1]}", "{'code': #, 'x': [1]}"),
        ("{'code': ('opaque',), 'x': 1}", "{'code': #, 'x': 1}"),
        ("{'code': {'value': 'opaque'}, 'x': 1}", "{'code': #, 'x': 1}"),
        ("[('code', 'opaque'), ('x', 'y')]", "[('code', '#'), ('x', 'y')]"),
        ("('code', ['opaque', 'opaque'])", "('code', #)"),
        ("call(code=opaque)[0]", "call(code=#)[0]"),
        ("[code=opaque]", "[code=#]"),
        ("client_secret=opa]que and more", "client_secret=# and more"),
        ("client_secret=opa[]que", "client_secret=#"),
        ('{"client_secret": "opa\\"que", "x": 1}', '{"client_secret": "#", "x": 1}'),
        (json.dumps({"x": json.dumps({"code": 'o"paque'})}), r'{"x": "{\"code\": \"#\"}"}'),
        ("code=['opaque", "code=#"),
        ("?code=opaque&x=1", "?code=#&x=1"),
        ("next=%2F%3Fcode%3Dopaque", "next=%2F%3Fcode%3D#"),
        ("next%3D%252F%253Fcode%253Dopaque", "next%3D%252F%253Fcode%253D#"),
        (quote("{'code': 'opaque'}"), "%7B%27code%27%3A#"),
        (quote(quote('{"code": ["opaque"]}')), "%257B%2522code%2522%253A#"),
        ("code=[redacted]", "code=#"),
    ],
)
def test_the_brackets_around_a_secret_stay_in_pairs(text: str, shown: str) -> None:
    shown = shown.replace("#", redaction.REDACTED)
    assert redaction.redact(text) == shown
    assert redaction.redact(shown) == shown


def test_a_message_that_cannot_be_put_together_is_not_shown_and_stops_nobody(
    records: list[str],
) -> None:
    logging.getLogger("bipsync_django.api").warning("a %d", JWT)
    assert any("cannot be put together" in line for line in records)
    assert_hidden([JWT], records)


def test_a_message_without_secrets_keeps_its_arguments(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("bipsync_django.api").warning("%s and %s", "one", "two")
    (record,) = caplog.records
    assert record.args == ("one", "two")


# --- error pages and mails


def view_with_secrets(request: Any) -> Any:
    access_token, headers = JWT, {"X": REFRESH}
    lower_case, error = CaseInsensitiveDict(X=JWT), ValueError(f"bad: {JWT}")
    kept = len(access_token), len(headers), len(lower_case), len(error.args)
    raise RuntimeError("a mistake of the site's", kept)


class Opaque:
    """Of a form that nobody knows."""

    def __repr__(self) -> str:
        return HELD


def view_in_ours(request: Any) -> Any:
    return redaction.redact(*request.held)


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("view", [view_with_secrets, view_in_ours])
@pytest.mark.django_db
def test_the_report_of_a_sites_mistake_shows_no_token(
    view: Any, debug: bool, settings: Any, rf: Any
) -> None:
    settings.DEBUG = debug
    back = f"https://portal.example/bipsync/callback/?code={CODE}"
    request = rf.get("/x/", HTTP_AUTHORIZATION=f"Bearer {JWT}", HTTP_REFERER=back)
    request.held = (Opaque(),)
    request.COOKIES["__Host-bipsync-1"] = TRIP
    request.COOKIES[settings.SESSION_COOKIE_NAME] = SESSION
    request.META["HTTP_COOKIE"] = f"sessionid={SESSION}"
    request.user = AnonymousUser()
    request.session = SessionStore()
    middleware = BipsyncSessionMiddleware(view)
    middleware.process_request(request)
    with pytest.raises((RuntimeError, TypeError)) as caught:
        view(request)
    reporter = ExceptionReporter(
        request, type(caught.value), caught.value, caught.value.__traceback__
    )
    shown: list[str] = [reporter.get_traceback_html(), reporter.get_traceback_text()]
    assert "test_redaction" in shown[0]
    assert_hidden([JWT, REFRESH, SESSION, HELD, CODE, TRIP], shown)


def test_a_filter_that_the_site_has_chosen_stays(settings: Any, rf: Any) -> None:
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = "site.Filter"
    request = rf.get("/")
    error_reports.guard(request)
    assert not hasattr(request, "exception_reporter_filter")


def test_a_value_that_cannot_be_shown_stops_no_report() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise ValueError

    value = [Broken()]
    assert error_reports.ReporterFilter()._cleanse(value) is value


# --- the text of an object

_HOLDS = re.compile(r"secret|token|verifier|state$|code$|password|refresh$|(?<!keep_)claims$")


def _dataclasses() -> Iterator[type]:
    package = Path(redaction.__file__).parent
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if "testing" in parts or "migrations" in parts:
            continue
        module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
        for value in vars(module).values():
            is_own = getattr(value, "__module__", "") == module.__name__
            if isinstance(value, type) and is_own and dataclasses.is_dataclass(value):
                yield value


def test_no_dataclass_shows_a_secret() -> None:
    shown = {
        f"{one.__name__}.{field.name}"
        for one in _dataclasses()
        for field in dataclasses.fields(one)
        if field.repr and _HOLDS.search(field.name)
    }
    # A row and the number of one, validated claims, whose own text leaves the rest out, an address,
    # and where a secret is.
    not_secret = {"SignIn.token", "SignIn.claims", "_Binding.token", "Lapsed.token"}
    not_secret |= {"Tenant.token_url", "_AwsPlace.secret_id"}
    assert shown == not_secret
    assert len(list(_dataclasses())) > 15


def test_claims_and_rows_show_who_and_no_more(bipsync: SimulatedBipsync, tenant: Tenant) -> None:
    token = bipsync.sign({**bipsync.access_token_claims(), "email": HELD})
    claims = validate_access_token(token, tenant, from_provider=True)
    assert_hidden([HELD, token], [repr(claims), str(claims)])


def test_an_error_that_says_no_secret_is_kept_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def exchange(code: str, state: str) -> None:
        raise ValueError("nothing secret")

    code, state = CODE, SESSION
    try:
        # The line itself looks like a parameter with its value.
        exchange(code=code, state=state)
    except ValueError:
        logging.getLogger("bipsync_django.api").exception("failed")
    (record,) = caplog.records
    assert record.exc_info is not None


@pytest.mark.parametrize("suppressed", [False, True])
def test_an_error_that_only_followed_one_with_a_secret_is_told_without_it(
    suppressed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # No cause, and error trackers show the context of an error even where "from None" hides it.
    follower = RuntimeError("what came of it")
    follower.__context__ = ValueError(JWT)
    follower.__suppress_context__ = suppressed
    assert follower.__cause__ is None
    logging.getLogger("bipsync_django.api").error("failed", exc_info=follower)
    (record,) = caplog.records
    assert record.exc_info is None
    assert "what came of it" in (record.exc_text or "")
    assert_hidden([JWT], [caplog.text, repr(vars(record))])


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError(JWT)


@pytest.mark.parametrize("error", [ValueError(JWT), KeyError({"code": CODE}), Unspeakable()])
def test_an_error_that_says_one_is_told_without_it(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        try:
            raise error
        except Exception as first:
            raise RuntimeError("because of that") from first
    except RuntimeError:
        logging.getLogger("bipsync_django.api").exception("failed")
    (record,) = caplog.records
    assert record.exc_info is None
    assert record.exc_text
    assert "because of that" in record.exc_text
    assert_hidden([JWT, CODE], [caplog.text, repr(vars(record))])

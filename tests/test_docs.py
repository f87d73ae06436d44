"""The documentation says what the code does: nothing is missing, nothing is stale, examples run."""

import configparser
import importlib
import inspect
import re
import sys
import tomllib
import unittest
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, User
from django.core import mail
from django.dispatch import Signal
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.utils import timezone

from bipsync_django import (
    breaker,
    conf,
    doctor,
    errors,
    lifecycle,
    schedule,
    secret_sources,
    signals,
    tasks,
    testing,
    urls,
)
from bipsync_django.admin.actions import ACTIONS
from bipsync_django.failures import FAILURES
from bipsync_django.lifecycle import Outcome
from bipsync_django.models import BipsyncToken, HourlyCount, TenantState, TokenEvent
from bipsync_django.testing import Answer, SimulatedBipsync, SimulatedUser, fixtures
from tests.browser import Browser, signed_in
from tests.documentation import DOCS, block, blocks, run, text
from tests.grants import connect, expire, reload

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bipsync_django"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
LINKED = [
    *DOCS.glob("*.md"),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md")),
]
SOURCE = "\n".join(
    path.read_text() for path in sorted(PACKAGE.rglob("*.py")) if "migrations" not in path.parts
)
LIFECYCLE = "\n".join(path.read_text() for path in (PACKAGE / "lifecycle").glob("*.py"))

in_database = pytest.mark.django_db(transaction=True)


# --- reading Markdown


def prose(source: str) -> str:
    """``source`` without its code blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", source)


def section(page: str, heading: str) -> str:
    """What stands below ``heading``, up to the next one of the same or a higher level."""
    found = re.search(rf"(?m)^(#+) {re.escape(heading)}$", prose(text(page)))
    assert found is not None, f"{page} has no section {heading!r}."
    below = prose(text(page))[found.end() :]
    return re.split(rf"(?m)^#{{1,{len(found[1])}}} ", below)[0]


def table(page: str, heading: str, *, number: int = 0) -> dict[str, list[str]]:
    """The rows of a table in a section, by their first cell, which holds one name in backticks."""
    tables = re.findall(r"(?m)(?:^\|.*\n)+", section(page, heading))
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in tables[number].splitlines()[2:]
    ]
    assert all(re.fullmatch(r"`[^`]+`", row[0]) for row in rows), rows
    names = [row[0].strip("`") for row in rows]
    assert len(names) == len(set(names)), f"{page} repeats a row under {heading!r}."
    return {name: row[1:] for name, row in zip(names, rows, strict=True)}


def headings(source: str) -> list[str]:
    return re.findall(r"(?m)^#+ (.+)$", prose(source))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings(path.read_text())
    }


# --- every page


def test_the_index_leads_to_every_page() -> None:
    named = set(re.findall(r"\]\((\S+?\.md)\)", text("index.md")))
    assert named == {*PAGES} - {"index.md"}
    tree = text("index.md").partition("{toctree}")[2].partition("```")[0].split()[1:]
    assert {f"{name}.md" for name in tree} == named


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_one_title_and_its_headings_differ(page: str) -> None:
    assert len(re.findall(r"(?m)^# ", prose(text(page)))) == 1
    assert len(headings(text(page))) == len(set(headings(text(page))))


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name}: {target}"
        assert file.is_relative_to(ROOT), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{path.name}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_compile(page: str) -> None:
    for code in blocks(page):
        compile(code, page, "exec")


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_what_the_documentation_names_exists(path: Path) -> None:
    for name in set(re.findall(r"\bbipsync_django(?:\.\w+)+", path.read_text())):
        if not re.search(r"\.[EW]\d{3}$", name) and name not in permissions():
            assert exists(name), f"{path.name}: {name}"


def permissions() -> set[str]:
    own = [f"bipsync_django.{codename}" for codename, _ in BipsyncToken._meta.permissions]
    return {"bipsync_django.view_bipsynctoken", *own}


def test_every_action_of_the_admin_is_documented_with_its_permission() -> None:
    rows = re.findall(r"(?m)^\| ([^|`]+) \| `(\w+)` \|", section("admin.md", "What you can do"))
    assert {name: title for title, name in rows} == {
        f"{action.name}_bipsynctoken": str(action.title) for action in ACTIONS.values()
    }
    for name in permissions():
        assert name.removeprefix("bipsync_django.") in text("admin.md"), name


def exists(dotted: str) -> bool:
    found: Any = importlib.import_module("bipsync_django")
    for name in dotted.split(".")[1:]:
        if isinstance(found, ModuleType):
            try:
                found = importlib.import_module(f"{found.__name__}.{name}")
                continue
            except ModuleNotFoundError:
                pass
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


def test_exceptions_that_are_named_exist() -> None:
    exceptions = importlib.import_module("bipsync_django.exceptions")
    named = table("calling-the-api.md", "What can go wrong")
    assert set(named) - {"requests.RequestException"} <= set(exceptions.__all__)


# --- settings


def test_every_key_of_bipsync_is_documented_and_no_other() -> None:
    keys = list(conf._KEYS)
    assert list(table("settings.md", "The keys of BIPSYNC")) == keys
    described = re.findall(r"(?m)^### (.+)$", section("settings.md", "The keys of BIPSYNC"))
    assert described == keys
    for key in keys:
        assert "Example" in section("settings.md", key) or key == "CLIENT"


def test_defaults_are_those_of_the_code(settings: Any) -> None:
    settings.BIPSYNC = {"CLIENT": "acme", "CLIENT_ID": "i", "CLIENT_SECRET": "s", "SCOPES": ["a:b"]}
    tenant = conf.get_tenant()
    by_themselves: dict[str, Callable[[], Any]] = {
        "SSO_ONLY": conf.is_sso_only,
        "BREAK_GLASS_USERS": conf.break_glass_users,
    }
    for key, (_, default, _) in table("settings.md", "The keys of BIPSYNC").items():
        if conf._KEYS[key].required:
            assert default == "required"
            continue
        if not default.startswith("`"):
            assert key in {
                "TENANTS",
                "NAME",
                "REDIRECT_URI",
                "AUDIENCE",
                "ALLOW_INSECURE_LOOPBACK",
                "SERVICE_SCOPES",
            }
            continue
        owner: Any = tenant if hasattr(tenant, key.lower()) else conf.get_settings()
        value: Any = by_themselves[key]() if key in by_themselves else getattr(owner, key.lower())
        told = (
            default.strip("`")
            .removeprefix('""')
            .replace("{WEB_URL}", tenant.web_url)
            .replace("{CLIENT}", "acme")
            .replace("{API_URL}", tenant.api_url)
        )
        if isinstance(value, frozenset | tuple):
            value, told = list(value), told.replace('"', "'")
        assert str(float(told) if isinstance(value, float) else told) == str(value), key
    assert (tenant.redirect_uri, tenant.audience, tenant.name) == (None, "i", "acme")
    assert tenant.allow_insecure_loopback is settings.DEBUG


def test_ranges_are_those_of_the_code() -> None:
    for key, (_, _, unit) in table("settings.md", "The keys of BIPSYNC").items():
        if limits := re.search(r"seconds, (\S+) to (\S+)", unit):
            low, high = map(float, limits.groups())
            is_valid = conf._KEYS[key].is_valid
            assert is_valid(low), key
            assert is_valid(high), key
            assert not is_valid(low - 0.01), key
            assert not is_valid(high + 0.01), key


def test_every_secret_source_works(
    settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = secret_sources.secret
    sources = section("settings.md", "Where secrets come from")
    assert re.findall(r"(?m)^\| (\w+) \|", sources)[1:] == [
        "environment",
        "file",
        "callable",
        "AWS",
        "Azure",
        "literal",
    ]
    monkeypatch.setenv("BIPSYNC_CLIENT_SECRET", "from the environment")
    assert secret("env:BIPSYNC_CLIENT_SECRET") == "from the environment"
    (tmp_path / "bipsync").write_text("from a file\n")
    assert secret(f"file:{tmp_path / 'bipsync'}") == "from a file"
    example = block("settings.md", "def bipsync_secret")
    example = example.replace("/run/secrets/bipsync_client_secret", str(tmp_path / "bipsync"))
    assert secret(run(example)["bipsync_secret"]) == "from a file"
    # Those of stores are tried in tests/test_secret_stores.py.
    assert {*secret_sources._STORES} == {*re.findall(r"`([a-z-]+):", sources)} - {"env", "file"}


def test_every_check_is_documented_and_no_other() -> None:
    for number, file in enumerate(("checks.py", "deploy_checks.py")):
        ids = set(re.findall(r"\b[EW]\d{3}\b", (PACKAGE / file).read_text()))
        told = set(table("settings.md", "System checks", number=number))
        assert told == {f"bipsync_django.{id_}" for id_ in ids}


def test_examples_of_settings_are_right(settings: Any, tmp_path: Path) -> None:
    examples = [
        code for page in PAGES for code in blocks(page) if re.search(r"(?m)^BIPSYNC = ", code)
    ]
    assert len(examples) > 3
    for code in examples:
        code = re.sub(r"(?m)^FIELD_ENCRYPTION_KEY.*\n", "", code)
        settings.BIPSYNC = run(code, INSTALLED_APPS=[])["BIPSYNC"]
        assert conf.problems() == []


def test_the_settings_of_the_installation_are_enough(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.core import checks

    monkeypatch.setenv("FIELD_ENCRYPTION_KEY", settings.FIELD_ENCRYPTION_KEY)
    monkeypatch.setenv("BIPSYNC_CLIENT_SECRET", "from the environment")
    installed = run(block("installing.md", "INSTALLED_APPS +="), INSTALLED_APPS=["mine"])
    assert installed["INSTALLED_APPS"] == ["mine", "bipsync_django"]
    module = ModuleType("documented_urls")
    vars(module).update(run(block("installing.md", "urlpatterns")))
    monkeypatch.setitem(sys.modules, "documented_urls", module)
    settings.ROOT_URLCONF = "documented_urls"
    for name in ("BIPSYNC", "AUTHENTICATION_BACKENDS", "FIELD_ENCRYPTION_KEY", "LOGIN_URL"):
        setattr(settings, name, installed[name])
    ours = [found for found in checks.run_checks() if "bipsync" in (found.id or "")]
    assert ours == []


def test_the_example_of_several_encryption_keys_reads_both(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.fernet import Fernet

    from bipsync_django.fields import seal

    old = seal("kept", "here")
    monkeypatch.setenv("FIELD_ENCRYPTION_KEY", settings.FIELD_ENCRYPTION_KEY)
    monkeypatch.setenv("NEW_FIELD_ENCRYPTION_KEY", Fernet.generate_key().decode())
    keys = run(block("settings.md", "NEW_FIELD_ENCRYPTION_KEY"))["FIELD_ENCRYPTION_KEY"]
    settings.FIELD_ENCRYPTION_KEY = keys
    assert old.unseal("here") == "kept"
    new = seal("kept", "here")
    settings.FIELD_ENCRYPTION_KEY = keys[0]
    assert new.unseal("here") == "kept"


# --- pages


def test_every_failure_is_documented_with_its_status_and_title() -> None:
    told = {
        reason: (status, title)
        for reason, (status, title, _) in table("pages.md", "Failure pages").items()
    }
    assert told == {
        reason: (str(failure.status), str(failure.title)) for reason, failure in FAILURES.items()
    }


def test_the_failures_that_need_an_administrator_are_the_last_ones() -> None:
    reasons = list(table("pages.md", "Failure pages"))
    assert "From `misconfigured` on, trying again alone will not help" in text("pages.md")
    needing = {reason for reason in reasons if FAILURES[reason].needs_administrator}
    assert set(reasons[reasons.index("misconfigured") :]) == needing


def test_every_url_is_documented() -> None:
    paths: dict[str, list[str]] = {}
    for pattern in urls.urlpatterns:
        path = str(pattern.pattern).replace("slug:", "")
        paths.setdefault(f"{urls.app_name}:{pattern.name}", []).append(f"`{path}`")
    told = {name: row[0] for name, row in table("pages.md", "URLs").items()}
    assert told == {name: ", ".join(known) for name, known in paths.items()}


def test_every_template_is_documented_with_its_context() -> None:
    folder = PACKAGE / "templates"
    told = table("pages.md", "Templates")
    assert set(told) == {path.relative_to(folder).as_posix() for path in folder.rglob("*.html")}
    for name, (_, context) in told.items():
        source = (folder / name).read_text()
        each = ", ".join(re.findall(r"\{% for ([\w, ]+) in", source)).split(", ")
        own = {*each, *re.findall(r" with (\w+)=", source), "counter"}
        loops = re.findall(r"\{% for [\w, ]+ in (\w+)", source)
        djangos = {"block", "forloop"}
        for variable in {*re.findall(r"\{\{ (\w+)", source), *loops} - own - djangos:
            assert f"`{variable}`" in context or variable.isupper(), f"{name}: {variable}"


# --- tokens, events, counters


def test_every_status_and_event_is_documented_with_its_label() -> None:
    assert {name: row[0] for name, row in table("tokens.md", "Status").items()} == {
        value: str(label) for value, label in BipsyncToken.Status.choices
    }
    assert set(table("tokens.md", "Events")) == set(TokenEvent.Name.values)


def test_events_that_are_not_recorded_are_said_to_be_so() -> None:
    for event, (meaning,) in table("tokens.md", "Events").items():
        recorded = re.search(rf"(Event|TokenEvent\.Name)\.{event.upper()}\b", SOURCE) is not None
        assert recorded is ("does not record it yet" not in meaning), event


def test_every_error_code_is_documented_in_its_own_words() -> None:
    told = {code: row[0] for code, row in table("tokens.md", "Last error").items()}
    words = {code: str(sentence) for code, sentence in errors.WORDS.items()}
    assert words.items() <= told.items()
    for code in set(told) - set(words):
        assert f'"{code}"' in SOURCE, f"{code} does not exist any more."
        assert "(no sentence yet)" in told[code]


def test_every_code_that_the_protocol_gives_is_documented() -> None:
    raised = re.findall(
        r"(?:GrantDead|ProviderMisconfigured|RetryLater|RefreshUnavailable|_Unacceptable"
        r"|ExchangeFailed)\(\s*\"(\w+)\"",
        SOURCE,
    )
    assert len(raised) > 10
    assert set(raised) <= set(table("tokens.md", "Last error"))


def test_every_counter_is_documented() -> None:
    counters = set(re.findall(r"\bcount\([\w.]+, \"(\w+)\"\)", LIFECYCLE))
    # What people do is counted under the event's name.
    assert "count(tenant.slug, event.value)" in LIFECYCLE
    assert "count(tenant.slug, Event.AUTHORISED.value)" in LIFECYCLE
    names = TokenEvent.Name
    counters |= {names.SIGNED_IN.value, names.CONNECTED.value, names.AUTHORISED.value}
    assert set(table("tokens.md", "Hourly counters")) == counters


@in_database
def test_the_shell_examples_for_administrators_run(
    bipsync: SimulatedBipsync, capsys: pytest.CaptureFixture[str]
) -> None:
    token = connect(bipsync)
    TenantState.objects.update(breaker_until=timezone.now(), dead_in_a_row=5)
    run(block("tokens.md", "HourlyCount.objects"))
    shown = capsys.readouterr().out
    assert HourlyCount.objects.get().name in shown
    assert TokenEvent.objects.get().name in shown
    run(block("tokens.md", "TenantState.objects.update"))
    assert TenantState.objects.get().breaker_until is None
    assert reload(token).status == "active"


# --- signals and tasks


def test_every_signal_is_documented_with_its_arguments() -> None:
    told = table("signals-and-tasks.md", "Signals")
    defined = {name for name in vars(signals) if isinstance(getattr(signals, name), Signal)}
    assert set(told) == defined == set(signals.__all__)
    sent = re.findall(r"\bsend\(signals\.(\w+), row(?:, (\w+)=)?", LIFECYCLE)
    both = "send(signals.connected if event == Event.CONNECTED else signals.signed_in, row, claims="
    assert both in LIFECYCLE
    sent += [("connected", "claims"), ("signed_in", "claims")]
    assert {name for name, _ in sent} == defined
    for name, argument in sent:
        wanted = ["`token`", f"`{argument}`"] if argument else ["`token`"]
        assert told[name][0] == ", ".join(wanted), name


def test_every_task_is_documented_and_the_schedule_too() -> None:
    told = table("signals-and-tasks.md", "Tasks")
    assert set(told) == {getattr(tasks, name).name for name in tasks.__all__}
    for entry in schedule.BEAT_SCHEDULE:
        assert f"`{entry}`" in text("signals-and-tasks.md")
    for page in ("installing.md", "signals-and-tasks.md"):
        merged = run(block(page, "**BEAT_SCHEDULE"))["CELERY_BEAT_SCHEDULE"]
        assert schedule.BEAT_SCHEDULE.items() <= merged.items()


@in_database
def test_the_example_receiver_writes_to_the_person(bipsync: SimulatedBipsync) -> None:
    receive = run(block("signals-and-tasks.md", "@receiver"))["ask_to_sign_in"]
    try:
        token = connect(bipsync)
        get_user_model().objects.update(email="ada@acme.example")
        bipsync.withdraw(token.subject)
        assert lifecycle.refresh_if_due(expire(token).pk) is Outcome.NEEDS_SIGN_IN
        assert [letter.to for letter in mail.outbox] == [["ada@acme.example"]]
    finally:
        assert signals.needs_sign_in.disconnect(
            sender=BipsyncToken, dispatch_uid="portal-ask-to-sign-in"
        )
    assert callable(receive)


# --- the refresh protocol


def test_the_steps_that_the_code_refers_to_are_described() -> None:
    steps = [
        int(number) for number in re.findall(r"(?m)^### Step (\d+): ", text("refresh-protocol.md"))
    ]
    assert steps == list(range(1, 12))
    named = [int(number) for number in re.findall(r"[Ss]teps? (\d+)", LIFECYCLE)]
    assert named
    assert set(named) <= set(steps)


def test_the_numbers_are_those_of_the_code() -> None:
    for name, (seconds, _) in table("refresh-protocol.md", "The numbers").items():
        module, _, constant = name.rpartition(".")
        value = getattr(importlib.import_module(f"bipsync_django.{module}"), constant)
        in_code = value.total_seconds() if isinstance(value, timedelta) else value
        assert in_code == float(seconds), name
    counts = re.findall(r"`breaker\.(\w+)` is (\d+)", text("refresh-protocol.md"))
    assert len(counts) == 3
    for name, number in counts:
        assert getattr(breaker, name) == int(number), name


# --- commands


def test_every_command_is_documented_with_its_options() -> None:
    commands = list((PACKAGE / "management" / "commands").glob("bipsync_*.py"))
    assert commands
    for path in commands:
        pages = {
            "bipsync_doctor": "doctor.md",
            "bipsync_give_up": "tenants.md",
            "bipsync_link": "linking.md",
            "bipsync_rotate_keys": "settings.md",
        }
        page = text(pages.get(path.stem, "tokens.md"))
        assert f"manage.py {path.stem}" in page
        for option in re.findall(r'"(--[a-z-]+)"', path.read_text()):
            assert f"`{option}" in page, option


# --- bipsync_django.testing


def test_every_public_name_of_testing_is_documented() -> None:
    assert set(table("testing.md", "What is in bipsync_django.testing")) == set(testing.__all__)


def test_every_fixture_is_documented() -> None:
    defined = re.findall(r"(?m)^@pytest\.fixture\ndef (\w+)", Path(fixtures.__file__).read_text())
    described = re.findall(r"(?m)^\*\*`(\w+)`\*\*", section("testing.md", "The fixtures"))
    assert sorted(described) == sorted(defined)


def test_switches_and_methods_of_the_simulator_exist() -> None:
    simulated = SimulatedBipsync().start()
    simulated.stop()
    switches = set(table("testing.md", "Switches", number=0))
    methods = {name.partition("(")[0] for name in table("testing.md", "Switches", number=1)}
    for name in switches | methods:
        assert hasattr(simulated, name), name
    described = "\n".join(inspect.getdoc(cls) or "" for cls in SimulatedBipsync.__mro__[:2])
    attributes = set(re.findall(r"(?m)^    (\w+):", described))
    assert {"latency", "clock_ahead"} <= attributes
    parameters = {"client", "client_id", "host", "port", "state_file", "tls"}
    assert attributes - parameters <= switches | methods


def test_every_option_of_the_runner_is_documented() -> None:
    source = (PACKAGE / "testing" / "__main__.py").read_text()
    options = set(re.findall(r'"(--[a-z-]+)"', source))
    assert set(table("testing.md", "Standing alone")) == options


@pytest.mark.django_db
def test_the_five_lines_work(
    client: Client, bipsync_sign_in: Callable[..., Any], settings: Any
) -> None:
    example = run(block("testing.md", "test_staff_see_the_front_page(client"))
    example["test_staff_see_the_front_page"](client, bipsync_sign_in)
    assert run(block("testing.md", "pytest_plugins"))["pytest_plugins"] == [fixtures.__name__]


@pytest.mark.django_db
def test_the_example_of_a_refusal_works(
    client: Client, bipsync_sign_in: Callable[..., Any], settings: Any
) -> None:
    example = run(block("testing.md", "test_someone_without_an_account"))
    example["test_someone_without_an_account_is_told_so"](client, bipsync_sign_in, settings)


@pytest.mark.django_db
def test_the_example_of_an_outage_works(
    client: Client, bipsync: SimulatedBipsync, bipsync_sign_in: Callable[..., Any]
) -> None:
    example = run(block("testing.md", "test_an_outage_at_bipsync"))
    example["test_an_outage_at_bipsync_is_seen_as_one"](client, bipsync, bipsync_sign_in)


@pytest.mark.django_db
def test_the_example_without_pytest_works() -> None:
    example = run(block("testing.md", "class FrontPageTest"))
    case = example["FrontPageTest"]("test_staff_see_the_front_page")
    result = unittest.TestResult()
    case(result)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])


# --- calling the API


@pytest.fixture
def person(bipsync: SimulatedBipsync) -> User:
    user = connect(bipsync).user
    assert isinstance(user, User)
    return user


@pytest.fixture
def profile(settings: Any, person: User) -> Callable[[], str]:
    """The example view with the example template, as the text that it answers."""
    (template,) = re.findall(r"(?ms)^```html\n(.*?)^```$", text("calling-the-api.md"))
    (engine,) = settings.TEMPLATES
    loaders = [
        ("django.template.loaders.locmem.Loader", {"my_profile.html": template}),
        "django.template.loaders.app_directories.Loader",
    ]
    options = {**engine["OPTIONS"], "loaders": loaders}
    settings.TEMPLATES = [{"BACKEND": engine["BACKEND"], "OPTIONS": options}]
    view = run(block("calling-the-api.md", "def my_profile"))["my_profile"]

    def visit() -> str:
        request = RequestFactory().get("/me/")
        request.user = person
        answer: HttpResponse = view(request)
        assert answer.status_code == 200
        return answer.content.decode()

    return visit


@in_database
def test_the_example_view_shows_the_profile(
    profile: Callable[[], str], bipsync: SimulatedBipsync
) -> None:
    assert "Ada Lovelace" in profile()
    # A token that somebody else has replaced meanwhile is replaced here too.
    BipsyncToken.objects.update(obtained_at=timezone.now() - timedelta(minutes=11))
    bipsync.fail("api", Answer(401))
    assert "Ada Lovelace" in profile()


@in_database
def test_the_example_view_offers_to_sign_in_again(
    profile: Callable[[], str], bipsync: SimulatedBipsync
) -> None:
    bipsync.fail("api", Answer(401), times=2)
    assert 'href="/bipsync/login/?next=%2Fme%2F"' in profile()
    lifecycle.disconnect(BipsyncToken.objects.get())
    assert "Sign in with Bipsync" in profile()


@in_database
def test_the_example_view_says_when_bipsync_is_away(
    profile: Callable[[], str], bipsync: SimulatedBipsync
) -> None:
    bipsync.fail("api", Answer(500))
    assert "try again in a minute" in profile()
    bipsync.fail("api", Answer(200, b"<html>"))
    assert "try again in a minute" in profile()
    bipsync.fail("token", Answer(500))
    expire(BipsyncToken.objects.get())
    assert "try again in a minute" in profile()


@in_database
def test_the_other_examples_of_calls_work(person: User, bipsync: SimulatedBipsync) -> None:
    page = "calling-the-api.md"
    assert run(block(page, "def whoami"))["whoami"](person)["email"] == "ada@acme.example"
    find = run(block(page, "def find_colleague"))["find_colleague"]
    assert find(person, "grace@acme.example")["name"] == "Grace Hopper"
    assert find(person, "nobody@acme.example") is None
    report = run(block(page, "def nightly_report"))["nightly_report"]
    assert list(report()) == [person.pk]
    run(block(page, "def disconnect_me"))["disconnect_me"](person)
    assert reload(BipsyncToken.objects.get()).status == BipsyncToken.Status.DISCONNECTED
    assert TokenEvent.objects.latest("at").actor == person
    assert report() == {}


# --- people


@pytest.fixture
def use_backend(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Put the backend of an example in the place of ours."""

    def use(name: str) -> Any:
        module = ModuleType("documented_backends")
        vars(module).update(run(block("people.md", f"class {name}(")))
        monkeypatch.setitem(sys.modules, "documented_backends", module)
        settings.AUTHENTICATION_BACKENDS = [f"documented_backends.{name}"]
        return getattr(module, name)

    return use


def user_of(browser: Browser) -> User | None:
    return User.objects.filter(pk=browser.user_id() or 0).first()


def guest(**claims: Any) -> SimulatedUser:
    subject = "68b993fa85d14160d5030301"
    return SimulatedUser(subject, "Nora Noon", "Nora", "Noon", "nora@else.example", extra=claims)


@in_database
def test_the_example_of_is_allowed_works(
    use_backend: Callable[[str], Any], bipsync: SimulatedBipsync
) -> None:
    use_backend("ColleaguesOnly")
    assert user_of(signed_in(bipsync)) is not None
    for stranger in (guest(), guest(email=None)):
        bipsync.add_user(stranger)
        browser = Browser()
        answer = browser.open(bipsync.approve(browser.begin(), user=stranger))
        assert (answer.status_code, answer.context["reason"]) == (403, "not_allowed")


@in_database
def test_the_example_of_create_user_works(
    use_backend: Callable[[str], Any], bipsync: SimulatedBipsync
) -> None:
    use_backend("InAGroup")
    for _ in range(2):
        user = user_of(signed_in(bipsync))
        assert user is not None
        assert list(user.groups.all()) == [Group.objects.get(name="Staff")]


@in_database
def test_the_example_of_update_user_works(
    use_backend: Callable[[str], Any], bipsync: SimulatedBipsync, settings: Any
) -> None:
    signed_in(bipsync)
    use_backend("FullNames")
    user = user_of(signed_in(bipsync))
    assert user is not None
    assert user.first_name == "Ada Lovelace"


@in_database
def test_the_example_of_get_user_works(
    use_backend: Callable[[str], Any], bipsync: SimulatedBipsync
) -> None:
    use_backend("NoSuperusers")
    browser = signed_in(bipsync)
    assert browser.get("/", secure=True).status_code == 200
    User.objects.update(is_superuser=True)
    assert browser.get("/", secure=True).status_code == 302
    User.objects.all().delete()
    assert browser.get("/", secure=True).status_code == 302


@in_database
def test_the_example_of_claims_works(bipsync: SimulatedBipsync, settings: Any) -> None:
    claims = run(block("people.md", "CLAIMS = {"))["CLAIMS"]
    assert claims.pop("department")({"team": "research"}) == "Research"
    settings.BIPSYNC = {**settings.BIPSYNC, "CLAIMS": claims}
    user = user_of(signed_in(bipsync, guest(profile={"given_name": "Eleonora"})))
    assert user is not None
    assert (user.first_name, user.last_name, user.email) == ("Eleonora", "Noon", "")


def test_the_default_claims_are_documented() -> None:
    from bipsync_django.users import DEFAULT_CLAIMS

    assert list(table("people.md", "Claims")) == list(DEFAULT_CLAIMS)


@in_database
def test_the_example_of_letting_somebody_go_works(person: User, bipsync: SimulatedBipsync) -> None:
    run(block("people.md", "def forget"))["forget"](person)
    assert BipsyncToken.objects.get().access_token is None


# --- dependencies and changelog


def test_every_dependency_is_documented_and_no_other() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in requirements}

    installed = re.findall(r"(?m)^### (.+)$", section("dependencies.md", "What a site installs"))
    assert set(installed) == names(project["project"]["dependencies"])
    extras = table("dependencies.md", "Extras")
    assert set(extras) == set(project["project"]["optional-dependencies"])
    for extra, requirements in project["project"]["optional-dependencies"].items():
        assert all(name in extras[extra][0] for name in names(requirements))
    tools = table("dependencies.md", "For working on this package")
    groups = project["dependency-groups"]
    needed = [one for group in groups.values() for one in group if isinstance(one, str)]
    assert set(tools) == names(needed)


def test_the_classifiers_name_the_versions_that_the_matrix_tries() -> None:
    matrix = configparser.ConfigParser(interpolation=None)
    matrix.read(ROOT / "tox.ini")
    tried = {f"{n[0]}.{n[1:]}" for n in re.findall(r"\d+", matrix["tox"]["env_list"])}
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    named = re.findall(
        r"(?m)^(?:Framework|Programming Language) .* (\d\.\d+)$", "\n".join(classifiers)
    )
    assert set(named) == tried


def test_the_changelog_speaks_of_the_present_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert project["version"] in changelog
    assert all(f"`{signal}`" in changelog for signal in signals.__all__)


def test_nothing_of_a_machine_is_in_the_documentation() -> None:
    folders = "|".join(("home", "work", "root", "tmp"))
    for path in LINKED:
        assert not re.search(rf"/({folders})/", path.read_text()), path.name


# --- several tenants, existing staff, rights


def test_where_keys_may_stand_is_documented() -> None:
    place = conf._Place
    (row,) = re.findall(r"(?m)^\| (`CLIENT`.*) \|$", section("tenants.md", "What stands where"))
    inside, either, beside = row.split(" | ")

    def keys(wanted: conf._Place) -> set[str]:
        return {key for key, known in conf._KEYS.items() if known.place is wanted}

    urls = {key for key in conf._KEYS if key.endswith("_URL")}
    assert set(re.findall(r"`(\w+)`", inside)) == keys(place.TENANT) - urls
    assert urls < keys(place.TENANT)
    assert "all URLs" in inside
    assert set(re.findall(r"`(\w+)`", either)) == keys(place.EITHER)
    assert beside == "everything else"


def test_the_example_of_several_tenants_is_right(settings: Any) -> None:
    settings.BIPSYNC = run(block("tenants.md", '"globex": {'))["BIPSYNC"]
    assert conf.problems() == []
    assert conf.get_tenant("acme").allowed_email_domains == ("acme.example",)
    assert conf.get_tenant("globex").name == "Globex Partners"


def test_the_examples_of_rules_are_right(settings: Any) -> None:
    rules = {
        **run(block("rights.md", "GROUPS = {")),
        **run(block("rights.md", "STAFF = {")),
    }
    settings.BIPSYNC = {
        **settings.BIPSYNC,
        **{name: value for name, value in rules.items() if name.isupper()},
    }
    assert conf.problems() == []
    match = run(block("linking.md", "MATCH_USERS_BY"))["BIPSYNC"]
    settings.BIPSYNC = {**settings.BIPSYNC, **match}
    assert conf.problems() == []
    assert conf.get_settings().match_users_by is not None


@in_database
def test_the_example_of_changes_shows_them(
    bipsync: SimulatedBipsync, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "STAFF": {"name": ["Ada Lovelace"]}}
    signed_in(bipsync)
    run(block("rights.md", "right_given"))
    assert "'reason': 'is_staff', 'detail': 'claim name'" in capsys.readouterr().out


# --- security


def test_every_line_of_the_security_page_names_a_test_that_there_is() -> None:
    defined = set()
    # Those of other sites are in files of their own, which a test runs.
    for path in (ROOT / "tests").rglob("*.py"):
        defined |= set(re.findall(r"(?m)^\s*def (test_\w+)", path.read_text()))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text("security.md").splitlines()
        if line.startswith("|") and not re.match(r"\|\s*(---|Section|What )", line)
    ]
    assert len(rows) > 50
    for row in rows:
        named = re.fullmatch(r"`(test_\w+)`", row[-1])
        assert named or row[-1] in {"none needed", "none possible", "none of ours"}, row
        assert not named or named[1] in defined, row


# --- the doctor


@in_database
def test_every_examination_of_the_doctor_is_described(bipsync: SimulatedBipsync) -> None:
    source = (PACKAGE / "doctor.py").read_text()
    checks = {
        name
        for name in re.findall(r'(?:Finding\(\s*|_survive\()"([^"]+)"', source)
        if name not in {"everything else", "endpoints"}
    }
    described = re.findall(
        r"(?m)^\| ((?:`[^`]+`(?:, )?)+) \|", section("doctor.md", "What it examines")
    )
    names = {name for cell in described for name in re.findall(r"`([^`]+)`", cell)}
    assert checks <= names
    assert {one.check for one in doctor.examine() if one.verdict == "ok"} <= names

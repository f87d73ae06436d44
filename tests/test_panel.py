"""The admin's panel: who may do what, what is written down, and what it costs."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin import AdminSite
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.cache import cache
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone
from kombu.exceptions import OperationalError

import tests.urls
from bipsync_django import events, health, lifecycle, tasks
from bipsync_django.admin import BipsyncTokenAdmin, actions
from bipsync_django.admin.actions import ACTIONS
from bipsync_django.models import BipsyncToken, HourlyCount, TenantState, TokenEvent
from bipsync_django.testing import Answer, Html, SimulatedBipsync
from tests.browser import visible_text
from tests.celery_app import FOLDER
from tests.grants import connect, expire, reload
from tests.workers import Worker

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/bipsync_django/bipsynctoken/"


@pytest.fixture
def token(bipsync: SimulatedBipsync) -> BipsyncToken:
    token = connect(bipsync)
    bipsync.reset_calls()
    return token


@pytest.fixture
def root() -> Client:
    client = Client()
    client.force_login(
        User.objects.create_superuser("root"), "django.contrib.auth.backends.ModelBackend"
    )
    return client


def clerk(*permissions: str) -> Client:
    user = User.objects.create_user(f"clerk-{User.objects.count()}", is_staff=True)
    for codename in ("view_bipsynctoken", *permissions):
        user.user_permissions.add(Permission.objects.get(codename=codename))
    client = Client()
    client.force_login(user, "django.contrib.auth.backends.ModelBackend")
    return client


def do(client: Client, action: str, *tokens: BipsyncToken) -> Any:
    pks = ",".join(str(token.pk) for token in tokens)
    return client.post(f"{LIST}do/{action}/", {"tokens": pks}, follow=True)


def messages(response: Any) -> str:
    return " ".join(str(message) for message in response.context["messages"])


# --- who may


@pytest.mark.parametrize("name", ACTIONS)
def test_each_action_has_a_permission_of_its_own(
    bipsync: SimulatedBipsync, token: BipsyncToken, name: str
) -> None:
    others = [f"{other}_bipsynctoken" for other in ACTIONS if other != name]
    may, may_not = clerk(f"{name}_bipsynctoken"), clerk(*others, "change_bipsynctoken")
    before = reload(token)
    for client in (may_not, Client()):
        assert do(client, name, token).status_code in {200, 403}
        response = client.post(LIST, {"action": name, "_selected_action": [token.pk]})
        assert response.status_code in {302, 200}
        assert b"bipsync" not in response.content or b"do/" not in response.content
        after = reload(token)
        assert (after.generation, after.status) == (before.generation, before.status)
        assert after.sessions_valid_after is None
    assert not LogEntry.objects.exists()
    assert may.get(f"{LIST}do/{name}/?tokens={token.pk}").status_code == 200
    assert may_not.get(f"{LIST}do/{name}/?tokens={token.pk}").status_code == 403
    page = may.get(LIST).content.decode()
    assert f'<option value="{name}">' in page
    assert [other for other in ACTIONS if f'<option value="{other}">' in page] == [name]


@pytest.mark.parametrize("name", ACTIONS)
def test_looking_is_needed_for_everything(token: BipsyncToken, name: str) -> None:
    client = clerk(f"{name}_bipsynctoken")
    User.objects.latest("pk").user_permissions.remove(
        Permission.objects.get(codename="view_bipsynctoken")
    )
    page = f"{LIST}do/{name}/"
    assert client.get(page, {"tokens": token.pk}).status_code == 403
    assert client.post(page, {"tokens": token.pk}).status_code == 403
    assert client.get(f"{LIST}progress/1-00000000/").status_code == 403
    assert not TokenEvent.objects.exclude(name="signed_in").exists()


def test_nothing_happens_by_a_link_or_from_another_site(root: Client, token: BipsyncToken) -> None:
    happened = TokenEvent.objects.count()
    for name in ACTIONS:
        for method in (root.get, root.head, root.options):
            assert method(f"{LIST}do/{name}/?tokens={token.pk}").status_code == 200
    strict = Client(enforce_csrf_checks=True)
    strict.cookies.update(root.cookies)
    for name in ACTIONS:
        assert do(strict, name, token).status_code == 403
    assert reload(token).generation == token.generation
    assert TokenEvent.objects.count() == happened
    assert not LogEntry.objects.exists()
    assert root.get(f"{LIST}do/delete/?tokens={token.pk}").status_code == 404


other_admin = AdminSite(name="backoffice")
other_admin.register(BipsyncToken, BipsyncTokenAdmin)
urlpatterns = [*tests.urls.urlpatterns, path("backoffice/", other_admin.urls)]


def test_in_another_admin_every_link_stays_there(
    root: Client, token: BipsyncToken, settings: Any
) -> None:
    settings.ROOT_URLCONF = __name__
    here = f"/backoffice/bipsync_django/bipsynctoken/{token.pk}/change/"
    for page in ("", f"{token.pk}/change/", f"do/refresh/?tokens={token.pk}", "service/"):
        response = root.get(f"/backoffice/bipsync_django/bipsynctoken/{page}")
        assert response.status_code == 200
        assert '"/admin/' not in response.content.decode()
    url = "/backoffice/bipsync_django/bipsynctoken/do/end_sessions/"
    assert root.post(url, {"tokens": token.pk})["Location"] == here


# --- what is written down


def test_every_deed_is_in_the_events_and_in_the_admins_log(
    root: Client, bipsync: SimulatedBipsync, token: BipsyncToken
) -> None:
    boss = User.objects.get(username="root")
    expire(token)
    assert "Refreshed: " in messages(do(root, "refresh", token))
    bipsync.fail("token", Answer(400, {"error": "invalid_grant"}))
    lifecycle.refresh_if_due(expire(token).pk)
    assert "It works again" in messages(do(root, "retry", token))
    assert "Sessions ended" in messages(do(root, "end_sessions", token))
    assert "Disconnected" in messages(do(root, "disconnect", token))
    asked = TokenEvent.objects.filter(actor=boss).order_by("id").values_list("name", flat=True)
    assert list(asked) == ["refresh_asked", "refresh_asked", "sessions_ended", "disconnected"]
    log = LogEntry.objects.order_by("id")
    assert [entry.change_message for entry in log] == [
        "Refresh now",
        "Try again",
        "End sessions",
        "Disconnect",
    ]
    assert {(entry.user_id, entry.object_id) for entry in log} == {(boss.pk, str(token.pk))}
    history = root.get(f"{LIST}{token.pk}/history/").content.decode()
    assert "Disconnect" in history


def test_a_deed_that_came_to_nothing_says_why_and_is_no_change(
    root: Client, bipsync: SimulatedBipsync, token: BipsyncToken
) -> None:
    bipsync.fail("token", Html(503))
    expire(token)
    told = messages(do(root, "refresh", token))
    assert "Bipsync had an internal error. Nothing: it is tried again by itself." in told
    assert not LogEntry.objects.exists()
    lifecycle.disconnect(token)
    for name in ("refresh", "retry", "disconnect"):
        assert "nothing to do" in messages(do(root, name, token))
    assert "nothing to do" in messages(do(root, "disconnect"))
    for pks in ("", "x", "1,x,99999999", "-1", "1" * 5000):
        response = root.post(f"{LIST}do/refresh/", {"tokens": pks}, follow=True)
        assert response.status_code == 200


def test_what_takes_too_long_is_left_and_said_so(
    root: Client, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [connect(bipsync, person=person) for person in bipsync.users]
    monkeypatch.setattr(actions, "_SECONDS", -1.0)
    told = messages(do(root, "disconnect", *rows))
    assert f"{len(rows)} are left" in told
    assert BipsyncToken.objects.filter(status="active").count() == len(rows)


# --- many at a time


@pytest.fixture
def broker() -> Iterator[Path]:
    for file in FOLDER.glob("*.msg"):
        file.unlink()
    yield FOLDER
    for file in FOLDER.glob("*.msg"):
        file.unlink()


def test_many_are_refreshed_by_workers_and_the_page_shows_how_far_they_are(
    root: Client, bipsync: SimulatedBipsync, broker: Path, tmp_path: Path
) -> None:
    rows = [connect(bipsync, person=person) for person in bipsync.users]
    for row in rows:
        expire(row)
    User.objects.filter(bipsync_tokens=rows[0]).update(is_active=False)
    bipsync.reset_calls()
    response = do(root, "refresh", *rows)
    page = response.redirect_chain[-1][0]
    assert page.startswith(f"{LIST}progress/")
    assert f"0 of {len(rows)} done." in visible_text(response.content.decode())
    assert response["Refresh"] == "3"
    assert LogEntry.objects.count() == len(rows)
    with Worker("solo", bipsync, broker, tmp_path) as worker:
        worker.wait_until(lambda: "Refresh" not in root.get(page))
    done = visible_text(root.get(page).content.decode())
    assert f"{len(rows)} of {len(rows)} done." in done
    assert f"{len(rows) - 1} refreshed" in done
    assert "1 not refreshed" in done
    assert bipsync.calls["refresh"] == len(rows) - 1
    not_refreshed = TokenEvent.objects.get(name="not_refreshed")
    assert (not_refreshed.token_id, not_refreshed.reason) == (rows[0].pk, "inactive")


def test_without_a_broker_nothing_is_lost_and_it_is_said(
    root: Client, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("amqp://user:secret@broker")

    monkeypatch.setattr(tasks.refresh_many, "apply_async", fail)
    rows = [connect(bipsync, person=person) for person in bipsync.users]
    response = do(root, "refresh", *rows)
    assert "Celery's broker cannot be reached" in messages(response)
    assert "secret" not in response.content.decode()
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("batch", ["1-00000000", "x", "99999999999-00000000", "1-0000000g"])
def test_a_batch_that_is_not_there_is_a_page_that_is_not_there(root: Client, batch: str) -> None:
    assert root.get(f"{LIST}progress/{batch}/").status_code == 404


def test_more_than_ten_thousand_are_too_many(
    root: Client, token: BipsyncToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bipsync_django.admin.tokens.MOST_AT_ONCE", 0)
    data = {"action": "refresh", "_selected_action": [token.pk]}
    assert "At most 0 at once" in messages(root.post(LIST, data, follow=True))


def test_progress_counts_a_row_that_was_deleted_as_one_that_was_not_refreshed(
    token: BipsyncToken,
) -> None:
    boss = User.objects.create_superuser("root")
    # What failed before it was asked for says nothing of it.
    events.record(token, TokenEvent.Name.REFRESH_FAILED, "timeout")
    batch = events.ask_for([token], boss)
    assert events.progress(batch).waiting == 1
    token.delete()
    assert (events.progress(batch).failed, events.progress(batch).waiting) == (1, 0)


# --- what the panel says


def test_settings_that_are_broken_are_shown_and_break_nothing(
    root: Client, token: BipsyncToken, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "LEEWAY": "x"}
    text = visible_text(root.get(LIST).content.decode())
    assert "BIPSYNC['LEEWAY'] is not valid" in text
    assert root.get(f"{LIST}{token.pk}/change/").status_code == 200
    service = root.get(f"{LIST}service/")
    assert service.status_code == 200


def test_each_trouble_is_told_with_what_to_do(
    root: Client, token: BipsyncToken, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "REFRESH_ENABLED": False, "DEPLOYMENT": "here"}
    TenantState.objects.update_or_create(tenant="acme", defaults={"deployment": "elsewhere"})
    BipsyncToken.objects.update(next_refresh_at=timezone.now() - timedelta(hours=1))
    old = timezone.now() - timedelta(days=21)
    service: dict[str, Any] = {
        "tenant": "acme",
        "kind": "service",
        "client_id": "portal",
        "signed_in_at": old,
    }
    BipsyncToken.objects.create(subject="s1", obtained_at=old, **service)
    BipsyncToken.objects.create(subject="s2", status="needs_sign_in", **service)
    BipsyncToken.objects.create(subject="s3", attempt=2, last_error="timeout", **service)
    text = visible_text(root.get(LIST).content.decode())
    for sentence in (
        "Refreshing is switched off (REFRESH_ENABLED). Switch REFRESH_ENABLED on again.",
        "in use by another deployment",
        "See whether Celery beat and a worker run",
        "the service account s1 runs out soon.",
        "the service account s2 has ended.",
        "the service account s3 cannot be refreshed. Bipsync did not answer in time.",
        "Connect it once more, under “Service accounts”.",
    ):
        assert sentence in text, sentence


def test_a_panel_without_anybody_says_so(root: Client, bipsync: SimulatedBipsync) -> None:
    text = visible_text(root.get(LIST).content.decode())
    assert "Nobody is connected to Bipsync yet." in text


def test_where_all_is_well_one_sentence_says_so(root: Client, token: BipsyncToken) -> None:
    text = visible_text(root.get(LIST).content.decode())
    assert "The connection works." in text
    assert "▲" not in text


def test_the_pictures_say_what_the_counters_say(root: Client, token: BipsyncToken) -> None:
    HourlyCount.objects.all().delete()
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    for part in range(3):
        HourlyCount.objects.create(
            tenant="acme", hour=hour - timedelta(hours=2), name="refreshed", part=part, count=1000
        )
    HourlyCount.objects.create(
        tenant="acme", hour=hour - timedelta(hours=2), name="refresh_failed", count=1
    )
    HourlyCount.objects.create(
        tenant="acme", hour=hour - timedelta(hours=24), name="refreshed", count=7
    )
    HourlyCount.objects.create(tenant="gone", hour=hour, name="refreshed", count=9)
    page = root.get(LIST).content.decode()
    assert "3000 refreshed, 1 failed, 0 ended" in page
    # One failure among thousands is to be seen.
    assert 'height="2.0" class="bipsync-bar-failed"' in page
    assert page.count('class="bipsync-bar-refreshed"') == 1


def test_numbers_in_a_picture_have_points_in_every_language(
    root: Client, token: BipsyncToken, settings: Any
) -> None:
    settings.LANGUAGE_CODE = "de"
    settings.USE_THOUSAND_SEPARATOR = True
    HourlyCount.objects.update(count=12_345)
    page = root.get(LIST).content.decode()
    bars = [line for line in page.splitlines() if line.startswith("<rect")]
    assert bars
    assert not [line for line in bars if "," in line or ' y=""' in line]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "● active"),
        ({"attempt": 2}, "▲ active, refresh fails"),
        ({"last_error": "token_refused"}, "▲ active, refresh fails"),
        ({"next_refresh_at": timezone.now() - timedelta(days=1)}, "▲ active, refresh overdue"),
        ({"status": "needs_sign_in"}, "✕ needs sign-in"),
        ({"status": "unconfirmed"}, "? waits for confirmation"),
        ({"status": "disconnected"}, "■ disconnected"),
    ],
)
def test_how_a_row_is_told(
    root: Client, token: BipsyncToken, values: dict[str, Any], word: str
) -> None:
    BipsyncToken.objects.update(**values)
    assert word in visible_text(root.get(LIST).content.decode())
    User.objects.filter(bipsync_tokens=token).update(is_active=False)
    text = visible_text(root.get(LIST).content.decode())
    assert ("■ person switched off" in text) is ("status" not in values)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"status__exact": "active"}, "adb"),
        ({"trouble": "failing"}, "b"),
        ({"trouble": "overdue"}, "d"),
        ({"trouble": "overdue", "status__exact": "needs_sign_in"}, ""),
        ({"tenant": "acme"}, "abcd"),
        ({"tenant": "globex"}, ""),
        ({"kind__exact": "service"}, ""),
        ({"trouble": "x"}, "abcd"),
    ],
    ids=str,
)
def test_filters_find_what_the_figures_count(
    root: Client, bipsync: SimulatedBipsync, query: dict[str, str], found: str
) -> None:
    now = timezone.now()
    people: dict[str, dict[str, Any]] = {
        "a": {"next_refresh_at": now},
        "b": {"attempt": 1, "next_attempt_at": now, "next_refresh_at": now},
        "c": {"status": "needs_sign_in", "attempt": 1},
        "d": {"next_refresh_at": now - timedelta(hours=1)},
    }
    for name, values in people.items():
        user = User.objects.create_user(f"person-{name}")
        BipsyncToken.objects.create(tenant="acme", subject=name, user=user, **values)
    text = visible_text(root.get(LIST, query).content.decode())
    assert {name for name in "abcd" if f"person-{name} " in text} == set(found)


def test_a_claim_that_was_not_named_is_not_kept(
    root: Client, bipsync: SimulatedBipsync, settings: Any
) -> None:
    token = connect(bipsync)
    assert reload(token).claims == {"name": "Ada Lovelace", "email": "ada@acme.example"}
    settings.BIPSYNC = {**settings.BIPSYNC, "KEEP_CLAIMS": ["given_name", "aud", "no_such"]}
    lifecycle.refresh(expire(token))
    kept = reload(token).claims
    assert set(kept) == {"given_name", "aud"}
    page = visible_text(root.get(f"{LIST}{token.pk}/change/").content.decode())
    assert "given_name Ada" in page
    assert "ada@acme.example" not in page


# --- what it costs


def _rows(count: int) -> None:
    start = User.objects.count()
    users = User.objects.bulk_create(
        User(username=f"person-{start + number}") for number in range(count)
    )
    now = timezone.now()
    BipsyncToken.objects.bulk_create(
        BipsyncToken(
            tenant="acme",
            subject=f"subject-{user.pk}",
            user=user,
            client_id="portal",
            attempt=number % 3,
            last_error="timeout" if number % 3 else "",
            access_expires_at=now + timedelta(minutes=number % 60),
            obtained_at=now,
        )
        for number, user in enumerate(users)
    )


def test_the_number_of_queries_is_the_same_with_ten_and_with_ten_thousand_tokens(
    root: Client, bipsync: SimulatedBipsync
) -> None:
    def count(query: dict[str, str]) -> int:
        root.get(LIST, query)
        with CaptureQueriesContext(connection) as queries:
            assert root.get(LIST, query).status_code == 200
        return len(queries)

    pages: list[dict[str, str]] = [{}, {"trouble": "failing"}, {"q": "person-1"}]
    _rows(10)
    few = [count(query) for query in pages]
    _rows(9_990)
    many = [count(query) for query in pages]
    assert few == many
    assert max(many) <= 12


def test_what_is_counted_serves_all_who_look_for_ten_seconds(
    root: Client, token: BipsyncToken, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            root.get(LIST)
        return len(queries)

    cache.clear()
    anew = count()
    assert count() == anew
    monkeypatch.setattr(health, "KEPT_FOR", 10)
    assert count() == anew
    assert count() < anew
    # What is done here is seen at once.
    do(root, "disconnect", token)
    assert "1 disconnected" in visible_text(root.get(LIST).content.decode())
    # A cache that fails, or that somebody writes rubbish into, changes nothing.
    cache.set(health._key(), "rubbish", 10)
    assert "1 disconnected" in visible_text(root.get(LIST).content.decode())
    settings.CACHES = {"default": {"BACKEND": "tests.test_limits.NoCache"}}
    assert "1 disconnected" in visible_text(root.get(LIST).content.decode())
    cache.clear()

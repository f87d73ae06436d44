"""Whoever has been shut out stays out: ended sessions, unlinked accounts, older claims."""

import base64
import dataclasses
import json
import logging
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import django
import pytest
from django.contrib.auth.models import Group, User
from django.core import mail
from django.db import DatabaseError, OperationalError, connections, transaction
from django.utils.log import AdminEmailHandler

from bipsync_django import lifecycle, rights
from bipsync_django.conf import get_tenant
from bipsync_django.lifecycle import Outcome
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.oauth.claims import validate_access_token
from bipsync_django.testing import SimulatedBipsync
from tests.browser import Browser, answer_confirmation, signed_in, way_to_bipsync
from tests.databases import on_servers
from tests.grants import expire, reload

in_sqlite = pytest.mark.django_db(transaction=True)

ADA, GRACE = "ada@acme.example", "grace@acme.example"
SERVICE = "/admin/bipsync_django/bipsynctoken/service/"


def say(bipsync: SimulatedBipsync, **claims: object) -> None:
    """Let Bipsync say this of Ada from now on."""
    ada = bipsync.find_user(ADA)
    bipsync.add_user(dataclasses.replace(ada, extra=claims))


def elsewhere(work: Callable[[], object]) -> None:
    """Do it on another connection, while the caller's transaction is open."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def connect(browser: Browser, bipsync: SimulatedBipsync, user: str) -> Any:
    answer = browser.post("/bipsync/connect/", secure=True)
    if answer.status_code == 302:
        return answer
    back = browser.open(bipsync.approve(way_to_bipsync(answer), user=user))
    return answer_confirmation(browser, back)


# --- sessions that are over


@in_sqlite
@pytest.mark.parametrize("interval", [0, 3600])
def test_an_account_that_was_unlinked_does_not_join_itself_again(
    bipsync: SimulatedBipsync, settings: Any, interval: int
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": interval}
    boss = User.objects.create_superuser("boss")
    lifecycle.link(get_tenant(), bipsync.find_user(GRACE).id, boss)
    thief = signed_in(bipsync, GRACE)
    assert thief.open("/greeting/").content == b"Hello boss"
    lifecycle.unlink(BipsyncToken.objects.get())
    assert connect(thief, bipsync, GRACE)["Location"].startswith("/bipsync/login/")
    assert signed_in(bipsync, GRACE).user_id() != str(boss.pk)


@in_sqlite
@pytest.mark.parametrize("how", ["deleted", "ended", "disconnected", "switched off"])
def test_a_session_that_is_over_connects_nothing(bipsync: SimulatedBipsync, how: str) -> None:
    stolen = signed_in(bipsync, ADA).twin()
    # A trip that was begun while it still went on must not be finished either.
    away = way_to_bipsync(stolen.post("/bipsync/connect/", secure=True))
    token = BipsyncToken.objects.get()
    if how == "deleted":
        token.delete()
    elif how == "switched off":
        User.objects.update(is_active=False)
    else:
        (lifecycle.end_sessions if how == "ended" else lifecycle.disconnect)(token)
    stolen.open(bipsync.approve(away, user=GRACE))
    connect(stolen, bipsync, GRACE)
    assert not BipsyncToken.objects.filter(subject=bipsync.find_user(GRACE).id).exists()


@in_sqlite
def test_a_session_that_is_over_authorises_no_service_account(bipsync: SimulatedBipsync) -> None:
    stolen = signed_in(bipsync, ADA)
    User.objects.update(is_staff=True, is_superuser=True)
    page = stolen.post(SERVICE, {"do": "connect", "tenant": "acme"}, secure=True)
    lifecycle.end_sessions(BipsyncToken.objects.get())
    stolen.open(bipsync.approve(way_to_bipsync(page), user=GRACE))
    assert not BipsyncToken.objects.filter(kind="service").exists()


@in_sqlite
@pytest.mark.parametrize("how", ["disconnect", "unlink and link"])
def test_a_session_that_was_ended_does_not_go_on_with_the_next_sign_in(
    bipsync: SimulatedBipsync, settings: Any, how: str
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 0}
    lost = signed_in(bipsync, ADA)
    token = BipsyncToken.objects.get()
    if how == "disconnect":
        lifecycle.disconnect(token)
    else:
        lifecycle.unlink(token)
        lifecycle.link(get_tenant(), token.subject, User.objects.get())
    assert signed_in(bipsync, ADA).open("/greeting/").content == b"Hello ada"
    assert lost.open("/greeting/").content == b"Hello visitor"


@in_sqlite
@pytest.mark.parametrize("meanwhile", ["nothing", "ended", "needs sign-in"])
def test_a_copy_of_a_cookie_does_not_come_back_when_its_owner_signs_in_again(
    bipsync: SimulatedBipsync, settings: Any, meanwhile: str
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 0}
    ada = signed_in(bipsync, ADA)
    thief = ada.twin()
    trip = ada.begin()
    if meanwhile == "ended":
        lifecycle.end_sessions(BipsyncToken.objects.get())
    elif meanwhile == "needs sign-in":
        BipsyncToken.objects.update(status="needs_sign_in")
    ada.open(bipsync.approve(trip, user=ADA))
    assert ada.open("/greeting/").content == b"Hello ada"
    assert thief.open("/greeting/").content == b"Hello visitor"


@in_sqlite
def test_who_signs_in_twice_gets_a_new_session_key_and_keeps_the_rest(
    bipsync: SimulatedBipsync,
) -> None:
    ada = signed_in(bipsync, ADA)
    session = ada.session
    session["basket"] = "kept"
    session.save()
    before = ada.cookies["sessionid"].value
    ada.open(bipsync.approve(ada.begin(), user=ADA))
    assert ada.cookies["sessionid"].value != before
    assert ada.session["basket"] == "kept"


# --- rights of an account that is nobody's any more


RULES = {
    "STAFF": {"roles": ["admin"]},
    "SUPERUSER": {"roles": ["admin"]},
    "GROUPS": {"roles": {"admin": "Admins"}},
}


@on_servers
def test_a_sign_in_beside_an_unlink_leaves_no_rights_and_no_pair(
    database: str, bipsync: SimulatedBipsync, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, **RULES}
    Group.objects.create(name="Admins")
    signed_in(bipsync, ADA)
    ada = User.objects.get()
    lifecycle.disconnect(BipsyncToken.objects.get())
    say(bipsync, roles=["admin"])
    take_back = rights.take_back
    beside: list[threading.Thread] = []

    def sign_in_meanwhile(row: BipsyncToken, user: Any) -> None:
        take_back(row, user)

        def sign_in() -> None:
            signed_in(bipsync, ADA)
            connections.close_all()

        beside.append(threading.Thread(target=sign_in))
        beside[0].start()
        # It waits for the row, or would be over by then.
        beside[0].join(1)

    monkeypatch.setattr(rights, "take_back", sign_in_meanwhile)
    lifecycle.unlink(BipsyncToken.objects.get())
    beside[0].join(30)
    row = BipsyncToken.objects.get()
    ada.refresh_from_db()
    # Whoever came second found what the first had left: the sign-in is a new person's first.
    assert row.user is not None
    assert row.user != ada
    assert (ada.is_staff, ada.is_superuser, ada.groups.exists()) == (False, False, False)


@in_sqlite
def test_who_loses_the_account_loses_the_groups_that_its_claims_gave(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, **RULES}
    own = Group.objects.create(name="Choir")
    Group.objects.create(name="Admins")
    say(bipsync, roles=["admin"])
    signed_in(bipsync, ADA)
    ada = User.objects.get()
    ada.groups.add(own)
    assert ada.groups.count() == 2
    lifecycle.unlink(BipsyncToken.objects.get())
    assert list(ada.groups.all()) == [own]
    event = TokenEvent.objects.get(name="right_taken", reason="group")
    assert event.detail == "Admins (the account is no longer theirs)"


@on_servers
@pytest.mark.parametrize("meanwhile", ["unlinked", "demoted"])
def test_claims_that_waited_for_a_commit_are_not_applied_to_what_has_changed_since(
    database: str, bipsync: SimulatedBipsync, settings: Any, meanwhile: str
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, **RULES}
    Group.objects.create(name="Admins")
    signed_in(bipsync, ADA)
    ada = User.objects.get()
    say(bipsync, roles=["admin"])
    token = expire(BipsyncToken.objects.get())
    with transaction.atomic(using=database):
        lifecycle.access_token(token)
        if meanwhile == "unlinked":
            elsewhere(lambda: lifecycle.unlink(BipsyncToken.objects.get()))
        else:
            say(bipsync, roles=[])
            elsewhere(lambda: signed_in(bipsync, ADA))
    ada.refresh_from_db()
    assert (ada.is_staff, ada.is_superuser, ada.groups.exists()) == (False, False, False)


@on_servers
def test_claims_that_waited_for_a_commit_are_applied_otherwise(
    database: str, bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, **RULES}
    signed_in(bipsync, ADA)
    say(bipsync, roles=["admin"])
    token = expire(BipsyncToken.objects.get())
    with transaction.atomic(using=database):
        lifecycle.access_token(token)
    assert User.objects.get().is_staff


# --- what a person can put into a claim


@on_servers
@pytest.mark.parametrize("name", ["Ada\x00L", "Ada\ud800L", "Ada\u202eL"], ids=ascii)
def test_a_name_that_no_database_takes_is_not_kept_and_stops_nothing(
    database: str, bipsync: SimulatedBipsync, name: str
) -> None:
    say(bipsync, name=name)
    signed_in(bipsync, ADA)
    token = expire(BipsyncToken.objects.get())
    assert lifecycle.refresh_if_due(token.pk) is Outcome.REFRESHED
    assert reload(token).claims == {"email": ADA}


@in_sqlite
def test_a_row_that_the_database_refuses_does_not_end_the_run(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    signed_in(bipsync, ADA)
    token = expire(BipsyncToken.objects.get())

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError("a claim: eyJ")

    monkeypatch.setattr("bipsync_django.lifecycle.background.obtain", refuse)
    assert lifecycle.refresh_if_due(token.pk) is Outcome.FAILED
    assert "could not be refreshed (DatabaseError)" in caplog.text
    assert "a claim" not in caplog.text


# --- errors at the last moment


@in_sqlite
def test_a_user_who_is_deleted_at_the_last_moment_is_a_page(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in = lifecycle.sign_in

    def and_delete(*args: Any, **kwargs: Any) -> BipsyncToken:
        token = sign_in(*args, **kwargs)
        elsewhere(lambda: User.objects.all().delete())
        return token

    browser = Browser()
    callback = bipsync.approve(browser.begin(), user=ADA)
    monkeypatch.setattr(lifecycle, "sign_in", and_delete)
    response = browser.open(callback)
    assert response.status_code == 503
    assert 'data-reason="storage_unavailable"' in response.content.decode()
    assert browser.user_id() is None


@in_sqlite
def test_a_failure_page_that_fails_itself_leaves_no_code_in_the_mail(
    bipsync: SimulatedBipsync, settings: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bipsync_django").mkdir()
    (tmp_path / "bipsync_django" / "failure.html").write_text("{{ request.user.pk }}")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [str(tmp_path)]}]
    admin = "admin@portal.example"
    settings.ADMINS = [admin] if django.VERSION >= (6, 0) else [("Admin", admin)]
    browser = signed_in(bipsync, ADA)
    callback = bipsync.approve(browser.begin(), user=ADA)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("gone")

    monkeypatch.setattr("django.contrib.auth.middleware.auth.get_user", fail)
    browser.raise_request_exception = False
    handler, logger = AdminEmailHandler(include_html=True), logging.getLogger("django.request")
    logger.addHandler(handler)
    try:
        assert browser.open(callback).status_code == 500
    finally:
        logger.removeHandler(handler)
    query = parse_qs(urlsplit(callback).query)
    message: Any = mail.outbox[0]
    whole = f"{message.subject}{message.body}{message.alternatives}"
    for name in ("code", "state"):
        assert query[name][0] not in whole


# --- two applications of one Bipsync client


@in_sqlite
def test_a_forged_key_at_one_tenant_costs_another_nothing(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    own = {k: v for k, v in settings.BIPSYNC.items() if k != "ALLOW_INSECURE_LOOPBACK"}
    settings.BIPSYNC = {
        "ALLOW_INSECURE_LOOPBACK": True,
        "TENANTS": {"acme": own, "acme-two": own},
    }
    good = bipsync.issue_pair().access_token
    header = json.dumps({"alg": "RS256", "kid": "forged"}).encode()
    head = base64.urlsafe_b64encode(header).decode().rstrip("=")
    forged = ".".join([head, *good.split(".")[1:]])
    with pytest.raises(Exception, match="key"):
        validate_access_token(forged, get_tenant("acme"))
    assert validate_access_token(good, get_tenant("acme-two")).subject

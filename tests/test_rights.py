"""Groups and flags over time: what claims gave, they take back, and nothing else."""

import dataclasses
import logging
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db import connections, transaction
from django.db.models.signals import m2m_changed
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bipsync_django import durable, lifecycle, rights, signals, users
from bipsync_django.backends import BipsyncBackend
from bipsync_django.conf import get_tenant
from bipsync_django.exceptions import SignInRefused
from bipsync_django.lifecycle.validation import validate
from bipsync_django.models import BipsyncToken, GivenFlag, TokenEvent
from bipsync_django.oauth.claims import Claims, validate_access_token
from bipsync_django.testing import Html, SimulatedBipsync, SimulatedUser
from tests.browser import Browser, signed_in
from tests.databases import on_servers
from tests.grants import at_once, expire

pytestmark = pytest.mark.usefixtures("database")

NORA = "68b993fa85d14160d5030301"
STAFF = {"STAFF": {"roles": ["admin"]}}
GROUPS = {"GROUPS": {"teams": {"research": "Analysts", "ops": "Operations"}}}


def nora(**claims: Any) -> SimulatedUser:
    return SimulatedUser(NORA, "Nora Noon", "Nora", "Noon", "nora@acme.example", extra=claims)


def configure(settings: Any, **values: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, **values}


def sign_in(bipsync: SimulatedBipsync, **claims: Any) -> User:
    bipsync.add_user(nora(**claims))
    browser = signed_in(bipsync, NORA)
    return User.objects.get(pk=browser.user_id() or "")


def refresh(bipsync: SimulatedBipsync, **claims: Any) -> User:
    """Let the background refresh bring what Bipsync says by now."""
    bipsync.add_user(nora(**claims))
    token = BipsyncToken.objects.get(tenant="acme", subject=NORA)
    assert lifecycle.refresh_if_due(expire(token).pk) is lifecycle.Outcome.REFRESHED
    return User.objects.get(pk=token.user_id or 0)


def changes() -> list[tuple[str, str, str]]:
    events = TokenEvent.objects.filter(name__startswith="right_").order_by("pk")
    return [(event.name, event.reason, event.detail) for event in events]


# --- at the next validated claims


def test_a_refresh_gives_and_takes_what_a_sign_in_does(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    configure(settings, **STAFF, **GROUPS)
    for name in ("Analysts", "Operations"):
        Group.objects.create(name=name)
    user = sign_in(bipsync)
    assert not user.is_staff
    user = refresh(bipsync, roles=["admin"], teams=["research"], given_name="Norah")
    assert (user.is_staff, user.first_name) == (True, "Norah")
    assert list(user.groups.values_list("name", flat=True)) == ["Analysts"]
    user = refresh(bipsync, teams=["ops"])
    assert not user.is_staff
    assert list(user.groups.values_list("name", flat=True)) == ["Operations"]
    assert changes() == [
        ("right_given", "group", "Analysts (claim teams)"),
        ("right_given", "is_staff", "claim roles"),
        ("right_given", "group", "Operations (claim teams)"),
        ("right_taken", "group", "Analysts (claim teams)"),
        ("right_taken", "is_staff", "the rule no longer holds"),
    ]
    assert {event.subject for event in TokenEvent.objects.all()} == {NORA}


def test_what_keys_could_not_be_had_for_is_applied_once_they_are_there(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    configure(settings, **STAFF)
    sign_in(bipsync, roles=["admin"])
    bipsync.rotate_keys()
    bipsync.fail("jwks", Html(503), times=None)
    assert refresh(bipsync).is_staff, "claims that are not validated take nothing"
    bipsync.clear_failures()
    from bipsync_django.models import TenantState
    from bipsync_django.oauth.keys import LocalBudget, use_budget

    TenantState.objects.update(keys_asked_at=None)
    use_budget(LocalBudget())
    lifecycle.access_token(BipsyncToken.objects.get())
    assert not User.objects.get().is_staff


def test_of_two_who_validate_one_tells_the_site(bipsync: SimulatedBipsync) -> None:
    sign_in(bipsync)
    BipsyncToken.objects.update(validated_generation=0)
    readers = [BipsyncToken.objects.get(), BipsyncToken.objects.get()]
    told: list[str] = []

    def note(claims: Claims, **kwargs: object) -> None:
        told.append(claims.subject)

    signals.token_refreshed.connect(note)
    try:
        assert [validate(row) is not None for row in readers] == [True, True]
    finally:
        signals.token_refreshed.disconnect(note)
    assert told == [NORA]


def test_a_token_that_does_not_validate_gives_nothing(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    configure(settings, **STAFF)
    sign_in(bipsync)
    configure(settings, AUDIENCE="somebody-else")
    bipsync.add_user(nora(roles=["admin"]))
    lifecycle.refresh_if_due(expire(BipsyncToken.objects.get()).pk)
    assert BipsyncToken.objects.get().last_error == "token_refused"
    assert not User.objects.get().is_staff


@on_servers
def test_inside_a_transaction_rights_follow_its_commit_and_lock_nothing_before(
    bipsync: SimulatedBipsync, settings: Any, database: str
) -> None:
    configure(settings, **STAFF)
    user = sign_in(bipsync)
    bipsync.add_user(nora(roles=["admin"]))
    token = expire(BipsyncToken.objects.get())
    with transaction.atomic(using=database):
        lifecycle.access_token(token)
        assert not User.objects.get().is_staff
        (other,) = at_once(1, lambda _: User.objects.filter(pk=user.pk).update(last_name="N."))
        assert other == 1, "nobody waits for this transaction"
    assert User.objects.get().is_staff


def test_a_sites_own_backend_is_the_one_that_is_asked(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    sign_in(bipsync)
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.Shouting"]
    assert refresh(bipsync).first_name == "NORA"


class Shouting(BipsyncBackend):
    def update_user(self, user: Any, tenant: Any, claims: Claims) -> None:
        user.first_name = str(claims.claims["given_name"]).upper()
        user.save(update_fields=["first_name"])


def test_a_policy_that_fails_after_a_refresh_costs_no_token(
    bipsync: SimulatedBipsync, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sign_in(bipsync)
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.Failing"]
    refresh(bipsync)
    assert BipsyncToken.objects.get().generation == 2
    assert "on purpose" in caplog.text


class Failing(BipsyncBackend):
    def update_user(self, user: Any, tenant: Any, claims: Claims) -> None:
        raise ZeroDivisionError("on purpose")


# --- whose a flag is


def test_a_flag_that_an_administrator_ticked_is_never_taken(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    sign_in(bipsync)
    User.objects.update(is_staff=True)
    configure(settings, **STAFF)
    assert refresh(bipsync, roles=["admin"]).is_staff
    assert refresh(bipsync, roles=[]).is_staff
    assert not GivenFlag.objects.exists()
    assert changes() == []


def test_a_flag_is_taken_when_its_rule_is_gone_from_the_settings(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    configure(settings, **STAFF)
    assert sign_in(bipsync, roles=["admin"]).is_staff
    configure(settings, STAFF=None)
    assert not refresh(bipsync, roles=["admin"]).is_staff
    assert not GivenFlag.objects.exists()


def test_a_flag_that_was_unticked_by_hand_comes_back_while_the_rule_holds(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    configure(settings, **STAFF)
    sign_in(bipsync, roles=["admin"])
    User.objects.update(is_staff=False)
    assert refresh(bipsync, roles=["admin"]).is_staff
    assert not refresh(bipsync).is_staff


def test_the_same_claims_again_change_nothing(bipsync: SimulatedBipsync, settings: Any) -> None:
    configure(settings, **STAFF)
    sign_in(bipsync, roles=["admin"])
    before = changes()
    for _ in range(2):
        assert refresh(bipsync, roles=["admin"]).is_staff
    assert changes() == before


def test_a_flag_that_was_ticked_a_moment_ago_is_the_administrators(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    user = sign_in(bipsync)
    configure(settings, **STAFF)
    User.objects.update(is_staff=True)
    raw = bipsync.sign({**bipsync.access_token_claims(NORA), "roles": ["admin"]})
    claims = validate_access_token(raw, get_tenant(), from_provider=True)
    assert not user.is_staff, "as it was read before"
    rights.apply(BipsyncToken.objects.get(), user, get_tenant(), claims)
    assert not GivenFlag.objects.exists()
    assert changes() == []


def test_a_rule_that_fails_takes_nothing(
    bipsync: SimulatedBipsync, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    configure(settings, STAFF=lambda claims: claims["age"] > 40)
    assert sign_in(bipsync, age=41).is_staff
    assert refresh(bipsync).is_staff
    assert "A callable in STAFF or SUPERUSER failed" in caplog.text
    assert not refresh(bipsync, age=40).is_staff


def test_superuser_is_given_and_taken_in_the_same_way(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    configure(settings, SUPERUSER={"roles": ["root"]})
    assert sign_in(bipsync, roles=["root"]).is_superuser
    assert not refresh(bipsync).is_superuser


def test_break_glass_users_stay_as_they_are(bipsync: SimulatedBipsync, settings: Any) -> None:
    configure(settings, **STAFF)
    user = sign_in(bipsync, roles=["admin"])
    configure(settings, BREAK_GLASS_USERS=[user.username])
    user = refresh(bipsync, given_name="Norah")
    assert (user.is_staff, user.first_name) == (True, "Nora")


def test_what_two_tenants_give_is_taken_when_neither_does(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    """Another tenant's claims are applied as that tenant's callback would apply them."""
    configure(settings, **STAFF)
    user = sign_in(bipsync)
    acme = get_tenant()
    globex = dataclasses.replace(acme, slug="globex")
    token = BipsyncToken.objects.get()

    def apply(tenant: Any, *roles: str) -> bool:
        raw = bipsync.sign({**bipsync.access_token_claims(NORA), "roles": list(roles)})
        claims = validate_access_token(raw, acme, from_provider=True)
        rights.apply(token, user, tenant, claims)
        user.refresh_from_db()
        return user.is_staff

    assert apply(acme, "admin")
    assert apply(globex, "admin")
    assert apply(acme), "the other one stands for it"
    assert not apply(globex)
    assert apply(globex, "admin")
    assert apply(acme), "who gave nothing takes nothing"


def test_two_at_once_give_once(bipsync: SimulatedBipsync, settings: Any) -> None:
    sign_in(bipsync)
    configure(settings, **STAFF)
    token, tenant = BipsyncToken.objects.get(), get_tenant()
    raw = bipsync.sign({**bipsync.access_token_claims(NORA), "roles": ["admin"]})
    claims = validate_access_token(raw, tenant, from_provider=True)
    answers = at_once(
        4, lambda _: rights.apply(token, User.objects.get(pk=token.user_id or 0), tenant, claims)
    )
    assert answers == [None] * 4
    assert [name for name, *_ in changes()] == ["right_given"]
    assert GivenFlag.objects.count() == 1


def test_a_group_that_is_missing_is_said_in_the_log(
    bipsync: SimulatedBipsync, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    configure(settings, **GROUPS)
    with caplog.at_level(logging.ERROR):
        sign_in(bipsync, teams=["research"])
    assert "'Analysts', which does not exist" in caplog.text


@pytest.mark.parametrize("name", ["analysts", "ANALYSTS", "\u00c1nalysts"])
def test_a_group_is_named_to_the_letter_and_flags_are_taken_all_the_same(
    bipsync: SimulatedBipsync, settings: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    configure(settings, **STAFF, GROUPS={"teams": {"research": name}})
    Group.objects.create(name="Analysts")
    assert sign_in(bipsync, roles=["admin"]).is_staff
    user = refresh(bipsync, teams=["research"])
    assert (user.is_staff, user.groups.exists()) == (False, False)
    assert f"{name!r}, which does not exist" in caplog.text
    assert "could not be applied" not in caplog.text
    user = sign_in(bipsync, teams=["research"], roles=["admin"])
    assert (user.is_staff, user.groups.exists()) == (True, False)
    lifecycle.unlink(BipsyncToken.objects.get())
    user.refresh_from_db()
    assert not user.is_staff


@pytest.mark.parametrize("how", ["a refresh", "a sign-in"])
def test_a_rule_that_fails_keeps_no_other_from_being_applied(
    bipsync: SimulatedBipsync, settings: Any, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    configure(settings, **STAFF, **GROUPS, SUPERUSER={"roles": ["admin"]})
    Group.objects.create(name="Analysts")
    user = sign_in(bipsync, roles=["admin"])
    assert (user.is_staff, user.is_superuser) == (True, True)
    come = refresh if how == "a refresh" else sign_in

    def refuse(action: str, **kwargs: object) -> None:
        if action == "post_add":
            raise ZeroDivisionError("on purpose")

    m2m_changed.connect(refuse, sender=User.groups.through)
    try:
        user = come(bipsync, teams=["research"])
    finally:
        m2m_changed.disconnect(refuse, sender=User.groups.through)
    assert (user.is_staff, user.is_superuser, user.groups.exists()) == (False, False, False)
    assert f"GROUPS could not be applied to the user {user.pk}" in caplog.text
    assert ("right_given", "group") not in {change[:2] for change in changes()}
    assert come(bipsync, teams=["research"]).groups.exists(), "and is applied the next time"


@pytest.mark.parametrize("flag", ["is_staff", "is_superuser"])
def test_a_flag_that_fails_keeps_no_other_rule_from_being_applied(
    bipsync: SimulatedBipsync, settings: Any, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    configure(settings, **STAFF, **GROUPS, SUPERUSER={"roles": ["admin"]})
    Group.objects.create(name="Analysts")
    sign_in(bipsync, roles=["admin"])
    set_flag = rights._set

    def refuse(user: Any, name: str, *, to: bool) -> bool:
        if name == flag:
            raise ZeroDivisionError("on purpose")
        return set_flag(user, name, to=to)

    monkeypatch.setattr(rights, "_set", refuse)
    user = refresh(bipsync, teams=["research"])
    assert (user.is_staff, user.is_superuser) == (flag == "is_staff", flag == "is_superuser")
    assert user.groups.exists()
    assert GivenFlag.objects.filter(name=flag).exists(), "it is still noted as given"


def test_a_refresh_without_news_asks_nothing(bipsync: SimulatedBipsync, database: str) -> None:
    sign_in(bipsync)
    token, tenant = BipsyncToken.objects.select_related("user").get(), get_tenant()
    raw = bipsync.sign(bipsync.access_token_claims(NORA))
    claims = validate_access_token(raw, tenant, from_provider=True)
    assert token.user is not None
    asked: list[str] = []

    def note(execute: Any, sql: str, *args: Any) -> Any:
        asked.append(sql)
        return execute(sql, *args)

    with connections[database].execute_wrapper(note):
        BipsyncBackend().apply_claims(token, token.user, tenant, claims)
    assert asked == []


# --- whatever the claims hold

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["admin", "research", "nora@acme.example", "x" * 400, "a\x00b", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "roles"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = ["name", "given_name", "family_name", "email", "email_verified", "roles", "teams", "login"]
RULES = {
    **STAFF,
    **GROUPS,
    "SUPERUSER": {"roles.a": [True, 1, "admin"]},
    "CLAIMS": {"username": "login", "date_joined": "teams.a"},
    "MATCH_USERS_BY": {"TENANT": "acme", "VERIFIED_CLAIM": "email_verified"},
}


@hypothesis_settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(said=st.dictionaries(st.sampled_from(NAMES), ANYTHING))
def test_whatever_is_claimed_becomes_a_user_or_a_refusal(
    bipsync: SimulatedBipsync, settings: Any, said: dict[str, Any]
) -> None:
    """And nobody becomes a superuser, or somebody else, by it."""
    configure(settings, **RULES)
    User.objects.all().delete()
    local = User.objects.create_superuser("root", "nora@acme.example", "secret")
    claims = Claims(NORA, (), validate_now(bipsync).expires_at, {"sub": NORA, **said})
    token = BipsyncToken(tenant="acme", subject=NORA, client_id="portal")
    token.save()
    try:
        # As in a sign-in: users are looked for with a lock.
        with transaction.atomic(using=durable.database()):
            user: Any = BipsyncBackend().resolve(users.SignIn(get_tenant(), claims, token))
    except SignInRefused:
        assert User.objects.count() == 1
        return
    finally:
        TokenEvent.objects.all().delete()
        token.delete()
    assert user != local
    assert user.is_staff is (admin_in(said.get("roles")))


def validate_now(bipsync: SimulatedBipsync) -> Claims:
    raw = bipsync.sign(bipsync.access_token_claims(NORA if NORA in bipsync.users else None))
    return validate_access_token(raw, get_tenant(), from_provider=True)


def admin_in(roles: object) -> bool:
    return roles == "admin" or (isinstance(roles, list) and "admin" in roles)


def test_a_session_of_somebody_who_lost_the_flag_loses_the_admin(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    configure(settings, **STAFF)
    bipsync.add_user(nora(roles=["admin"]))
    browser: Browser = signed_in(bipsync, NORA)
    assert browser.get("/admin/", secure=True).status_code == 200
    refresh(bipsync)
    assert browser.get("/admin/", secure=True).status_code == 302

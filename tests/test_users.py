"""Who may come in, and how claims become a user."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, User
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connections
from django.db.models.signals import pre_save

from bipsync_django import users
from bipsync_django.backends import BipsyncBackend
from bipsync_django.conf import get_tenant
from bipsync_django.exceptions import SignInRefused
from bipsync_django.models import BipsyncToken
from bipsync_django.oauth.claims import Claims
from bipsync_django.testing import SimulatedBipsync, SimulatedUser
from bipsync_django.users import claim_value
from tests.browser import Browser, at_the_same_moment, signed_in

pytestmark = pytest.mark.django_db(transaction=True)

ADA = "68b993fa85d14160d4030391"
HERE = Path(__file__).parent


def person(number: int = 1, **claims: Any) -> SimulatedUser:
    """Somebody with these claims; a claim of ``None`` is in the token as null."""
    subject = f"68b993fa85d14160d50303{number:02}"
    return SimulatedUser(subject, "Nora Noon", "Nora", "Noon", "nora@acme.example", extra=claims)


def user_of(browser: Browser) -> User:
    return User.objects.get(pk=browser.user_id() or "")


def configure(settings: Any, **values: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, **values}


def claims_of(**claims: Any) -> Claims:
    return SimpleNamespace(subject="s", claims=claims)  # type: ignore[return-value]


def refused(browser: Browser, bipsync: SimulatedBipsync, user: Any = None) -> str:
    """The reason why ``user`` is not let in."""
    response = browser.open(bipsync.approve(browser.begin(), user=user))
    assert browser.user_id() is None
    assert response.status_code in {403, 503}, response
    page: str = response.content.decode()
    return page.partition('data-reason="')[2].partition('"')[0]


# --- who somebody is


def test_a_bipsync_account_never_becomes_the_superuser_with_its_email(
    bipsync: SimulatedBipsync,
) -> None:
    root = User.objects.create_superuser("root", "ada@acme.example", "secret")
    user = user_of(signed_in(bipsync))
    assert user != root
    assert user.email == "ada@acme.example"
    assert not user.is_superuser
    assert not user.is_staff
    root.refresh_from_db()
    assert root.check_password("secret")
    assert not BipsyncToken.objects.filter(user=root).exists()


@pytest.mark.parametrize("name", ["ada", "ADA", "Ada"])
def test_a_bipsync_account_never_becomes_the_user_with_its_name(
    bipsync: SimulatedBipsync, name: str
) -> None:
    local = User.objects.create_user(name)
    user = user_of(signed_in(bipsync))
    assert user != local
    assert user.username.startswith("ada-")
    assert len(user.username) == len("ada-") + 8


def test_a_mapped_username_that_somebody_has_is_refused_whatever_its_case(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    configure(settings, CLAIMS={"username": "email"})
    User.objects.create_superuser("Ada@ACME.example")
    assert refused(Browser(), bipsync) == "account_exists"
    assert User.objects.count() == 1


def test_a_person_whose_email_changes_stays_the_same_user(bipsync: SimulatedBipsync) -> None:
    first = user_of(signed_in(bipsync, person(email="old@acme.example")))
    bipsync.add_user(person(email="new@acme.example"))
    second = user_of(signed_in(bipsync, person().id))
    assert second == first
    assert second.email == "new@acme.example"
    assert second.username == "old"


def test_an_email_that_changes_hands_takes_no_account_along(bipsync: SimulatedBipsync) -> None:
    first = user_of(signed_in(bipsync, person(1, email="sales@acme.example")))
    second = user_of(signed_in(bipsync, person(2, email="sales@acme.example")))
    assert first != second
    assert {first.username, second.username} > {"sales"}


def test_the_same_subject_at_another_tenant_is_another_person(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    first = user_of(signed_in(bipsync))
    configure(settings, CLIENT="globex")
    second = user_of(signed_in(bipsync))
    assert first != second
    assert set(BipsyncToken.objects.values_list("tenant", flat=True)) == {"acme", "globex"}


def test_two_first_sign_ins_at_the_same_moment_make_one_user(
    database: str, bipsync: SimulatedBipsync
) -> None:
    browsers = [Browser(), Browser()]
    callbacks = [bipsync.approve(browser.begin()) for browser in browsers]
    answers = at_the_same_moment(
        *[lambda b=b, c=c: b.open(c) for b, c in zip(browsers, callbacks, strict=True)]
    )
    assert [answer.status_code for answer in answers] == [302, 302]
    assert User.objects.count() == 1
    assert BipsyncToken.objects.count() == 1
    assert {browser.user_id() for browser in browsers} == {str(User.objects.get().pk)}


def test_two_people_with_one_name_at_the_same_moment_become_two_users(
    database: str, bipsync: SimulatedBipsync
) -> None:
    people = [person(1), person(2)]
    browsers = [Browser(), Browser()]
    callbacks = [
        bipsync.approve(browser.begin(), user=user)
        for browser, user in zip(browsers, people, strict=True)
    ]
    answers = at_the_same_moment(
        *[lambda b=b, c=c: b.open(c) for b, c in zip(browsers, callbacks, strict=True)]
    )
    assert [answer.status_code for answer in answers] == [302, 302]
    assert len({browser.user_id() for browser in browsers}) == 2
    assert "nora" in User.objects.values_list("username", flat=True)


def test_a_name_that_is_taken_at_the_last_moment_is_replaced(
    database: str, bipsync: SimulatedBipsync
) -> None:
    # The name is looked up, found free, and taken before it is inserted.
    def take(instance: User, raw: bool, **arguments: Any) -> None:
        if instance.username == "ada" and not User.objects.filter(username="ada").exists():
            User.objects.bulk_create([User(username="ada", password="!")])

    pre_save.connect(take, sender=User)
    try:
        user = user_of(signed_in(bipsync))
    finally:
        pre_save.disconnect(take, sender=User)
    assert user.username.startswith("ada-")
    assert BipsyncToken.objects.get().user == user


# --- names


@pytest.mark.parametrize(
    ("claims", "username"),
    [
        ({"email": "nora@acme.example"}, "nora"),
        ({"email": "Nora.O'Neil+x@acme.example"}, "nora.o.neil+x"),
        ({"email": None}, "nora.noon"),
        ({"email": None, "name": "Zoë Łukasz"}, "zoë.łukasz"),
        ({"email": None, "name": "李 小龍"}, "李.小龍"),
        ({"email": None, "name": "🙂"}, "bipsync"),
        ({"email": None, "name": "İpek"}, "i.pek"),
        ({"email": None, "name": None}, "bipsync"),
        ({"email": None, "name": 7}, "bipsync"),
        ({"email": None, "name": "\x00.\x07"}, "bipsync"),
        ({"email": "not an address"}, "nora.noon"),
        ({"email": ["nora@acme.example"]}, "nora.noon"),
    ],
)
def test_a_username_is_made_of_what_is_known(
    bipsync: SimulatedBipsync, claims: dict[str, Any], username: str
) -> None:
    user = user_of(signed_in(bipsync, person(**claims)))
    assert user.username == username
    User.username_validator(user.username)


@pytest.mark.parametrize("count", [1, 2])
def test_an_over_long_name_is_cut_and_still_unique(bipsync: SimulatedBipsync, count: int) -> None:
    people = [person(number, email=None, name="n" * 400) for number in range(1, count + 1)]
    found = [user_of(signed_in(bipsync, someone)) for someone in people]
    assert len({user.username for user in found}) == count
    assert all(len(user.username) == 150 for user in found)


def test_fields_are_cut_to_their_length_but_an_address_is_not(bipsync: SimulatedBipsync) -> None:
    long = person(given_name="G" * 400, family_name="F" * 400, email="e" * 300 + "@acme.example")
    user = user_of(signed_in(bipsync, long))
    assert (len(user.first_name), len(user.last_name)) == (150, 150)
    assert user.email == ""


@pytest.mark.parametrize("dirt", ["\x00", "\x07", "\n", "\u202e", "\u200b", "\ud800"])
def test_characters_that_cannot_be_seen_are_left_out(
    bipsync: SimulatedBipsync, dirt: str, database: str
) -> None:
    user = user_of(signed_in(bipsync, person(given_name=f"No{dirt}ra", family_name=dirt)))
    assert (user.first_name, user.last_name) == ("Nora", "")


@pytest.mark.parametrize(
    ("claims", "names"),
    [
        ({}, ("Nora", "Noon")),
        ({"given_name": "Zoë", "family_name": "Müller-Łukasz"}, ("Zoë", "Müller-Łukasz")),
        ({"given_name": None, "family_name": None}, ("Nora", "Noon")),
        ({"given_name": None, "family_name": None, "name": "Cher"}, ("Cher", "")),
        ({"given_name": None, "family_name": None, "name": "A B C"}, ("A", "B C")),
        ({"given_name": None, "family_name": None, "name": "  "}, ("", "")),
        ({"given_name": None, "family_name": None, "name": ["x"]}, ("", "")),
        ({"given_name": {"x": 1}, "family_name": ["x"]}, ("", "")),
        ({"given_name": 7, "family_name": True}, ("7", "True")),
    ],
)
def test_names_come_from_whichever_claims_there_are(
    bipsync: SimulatedBipsync, claims: dict[str, Any], names: tuple[str, str]
) -> None:
    user = user_of(signed_in(bipsync, person(**claims)))
    assert (user.first_name, user.last_name) == names


# --- CLAIMS

CLAIMS = {
    "plain": "value",
    "profile": {"name": {"first": "Ada"}, "tags": ["x"], "none": None},
    "https://bipsync.example/dept": "Research",
    "a.b": "dotted",
    "a": {"b": "nested"},
}


def _fails(claims: Any) -> object:
    raise KeyError("badge")


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("plain", "value"),
        ("profile.name.first", "Ada"),
        ("profile.name", {"first": "Ada"}),
        ("profile.none", None),
        ("profile.none.more", None),
        ("profile.tags.0", None),
        ("plain.more", None),
        ("missing", None),
        ("profile..name", None),
        ("https://bipsync.example/dept", "Research"),
        ("a.b", "dotted"),
        (lambda claims: claims["plain"].upper(), "VALUE"),
        (_fails, None),
    ],
)
def test_a_claim_is_found_by_path_or_callable(source: Any, value: object) -> None:
    assert claim_value(CLAIMS, source) == value


def test_a_callable_that_fails_is_logged_and_leaves_its_field_alone(
    bipsync: SimulatedBipsync, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    configure(settings, CLAIMS={"first_name": _fails})
    user = user_of(signed_in(bipsync))
    assert (user.first_name, user.last_name) == ("", "Lovelace")
    assert "A callable in BIPSYNC['CLAIMS'] failed" in caplog.text


def test_nested_claims_callables_and_none_fill_fields(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    configure(
        settings,
        CLAIMS={
            "first_name": "profile.first",
            "email": lambda claims: f"{claims['sub']}@acme.example",
            "last_name": None,
            "date_joined": "profile.since",
        },
    )
    someone = person(profile={"first": "Nested", "since": "2020-02-29T12:00Z"})
    user = user_of(signed_in(bipsync, someone))
    assert (user.first_name, user.last_name) == ("Nested", "")
    assert user.email == f"{someone.id}@acme.example"
    assert user.date_joined == datetime(2020, 2, 29, 12, tzinfo=UTC)


@pytest.mark.parametrize("value", ["perhaps", 7, {"x": 1}, ["x"], None, ""])
def test_a_claim_that_does_not_fit_leaves_its_field_alone(
    bipsync: SimulatedBipsync, settings: Any, value: object
) -> None:
    configure(settings, CLAIMS={"is_active": "active", "date_joined": "since"})
    user = user_of(signed_in(bipsync, person(active=value, since=value)))
    assert user.is_active
    assert user.date_joined is not None


@pytest.mark.parametrize("field", ["nickname", "bipsync_flags", "bipsync_tokens"])
def test_what_is_no_column_of_the_user_is_passed_over(
    bipsync: SimulatedBipsync, settings: Any, field: str
) -> None:
    configure(settings, CLAIMS={field: "name"})
    assert user_of(signed_in(bipsync)).first_name == "Ada"


# --- people who come back


def test_what_bipsync_says_now_is_what_the_user_has(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync, person())
    bipsync.add_user(person(given_name="Norah", family_name="Nightingale"))
    user = user_of(signed_in(bipsync, person().id))
    assert (user.first_name, user.last_name) == ("Norah", "Nightingale")


def test_claims_that_are_gone_leave_their_fields_alone(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync, person())
    bipsync.add_user(person(name=None, given_name=None, family_name=None, email=None))
    user = user_of(signed_in(bipsync, person().id))
    assert (user.first_name, user.last_name) == ("Nora", "Noon")
    assert user.email == "nora@acme.example"


def test_claims_that_are_gone_do_not_hold_the_others_back(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync, person())
    bipsync.add_user(person(given_name="Norah", email=None))
    user = user_of(signed_in(bipsync, person().id))
    assert (user.first_name, user.email) == ("Norah", "nora@acme.example")


def test_a_returning_person_keeps_username_rights_and_groups(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    user = user_of(signed_in(bipsync))
    user.groups.add(Group.objects.create(name="Analysts"))
    User.objects.update(username="chosen", is_staff=True)
    configure(settings, CLAIMS={"username": "email"})
    user = user_of(signed_in(bipsync))
    assert (user.username, user.is_staff) == ("chosen", True)
    assert user.groups.count() == 1


def test_a_returning_person_without_news_is_not_saved(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync)
    saved = []

    def note(update_fields: Any, **arguments: Any) -> None:
        saved.append(set(update_fields or ["everything"]))

    pre_save.connect(note, sender=User)
    try:
        signed_in(bipsync)
    finally:
        pre_save.disconnect(note, sender=User)
    assert saved == [{"last_login"}]


def test_a_unique_value_that_somebody_else_has_is_left_alone(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(User._meta.get_field("email"), "unique", True)
    User.objects.create_user("other", "taken@acme.example")
    signed_in(bipsync, person())
    bipsync.add_user(person(email="taken@acme.example", given_name="Norah"))
    user = user_of(signed_in(bipsync, person().id))
    assert (user.first_name, user.email) == ("Norah", "nora@acme.example")
    assert "The email of user" in caplog.text
    bipsync.add_user(person(email="free@acme.example"))
    assert user_of(signed_in(bipsync, person().id)).email == "free@acme.example"


def test_a_constraint_that_new_claims_do_not_meet_locks_nobody_out(
    database: str, bipsync: SimulatedBipsync, caplog: pytest.LogCaptureFixture
) -> None:
    user = user_of(signed_in(bipsync, person()))
    bipsync.add_user(person(given_name="Norah"))

    def violate(instance: User, update_fields: Any, **arguments: Any) -> None:
        if "first_name" in (update_fields or ()):
            # A real violation, which on PostgreSQL ends a transaction that has no savepoint.
            User.objects.bulk_create([User(pk=user.pk, username="clash", password="!")])

    pre_save.connect(violate, sender=User)
    try:
        again = user_of(signed_in(bipsync, person().id))
    finally:
        pre_save.disconnect(violate, sender=User)
    assert again == user
    assert again.first_name == "Nora"
    assert "is left as before (IntegrityError)" in caplog.text


# --- who may come in


def test_without_create_users_strangers_stay_out_and_known_people_come_in(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    signed_in(bipsync)
    configure(settings, CREATE_USERS=False)
    assert signed_in(bipsync).user_id() is not None
    assert refused(Browser(), bipsync, "grace@acme.example") == "no_account"
    assert User.objects.count() == 1


def test_an_inactive_user_is_refused_and_learns_nothing_new(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync, person())
    before = BipsyncToken.objects.get()
    User.objects.update(is_active=False)
    bipsync.add_user(person(given_name="Norah"))
    assert refused(Browser(), bipsync, person().id) == "inactive"
    assert User.objects.get().first_name == "Nora"
    assert BipsyncToken.objects.get().generation == before.generation


def test_a_user_who_was_deleted_is_created_anew(bipsync: SimulatedBipsync) -> None:
    first = user_of(signed_in(bipsync))
    first.delete()
    assert user_of(signed_in(bipsync)).pk != first.pk


class Hooks(BipsyncBackend):
    """Uses every hook."""

    def is_allowed(self, tenant: Any, claims: Any, user: Any) -> bool:
        return bool(claims.claims["email"] != "grace@acme.example")

    def find_user(self, tenant: Any, claims: Any) -> Any:
        return User.objects.filter(username=f"hr-{claims.subject}").first()

    def create_user(self, tenant: Any, claims: Any) -> Any:
        user: Any = super().create_user(tenant, claims)
        user.groups.add(Group.objects.get_or_create(name=tenant.slug)[0])
        return user

    def update_user(self, user: Any, tenant: Any, claims: Any) -> None:
        super().update_user(user, tenant, claims)
        user.groups.add(Group.objects.get_or_create(name="returning")[0])


@pytest.fixture
def hooks(settings: Any) -> None:
    settings.AUTHENTICATION_BACKENDS = [
        "django.contrib.auth.backends.ModelBackend",
        f"{__name__}.Hooks",
    ]


@pytest.mark.usefixtures("hooks")
def test_is_allowed_decides_who_comes_in(bipsync: SimulatedBipsync) -> None:
    assert refused(Browser(), bipsync, "grace@acme.example") == "not_allowed"
    assert signed_in(bipsync, "ada@acme.example").user_id() is not None


@pytest.mark.usefixtures("hooks")
def test_find_user_links_an_existing_user_for_good(bipsync: SimulatedBipsync) -> None:
    known = User.objects.create_user(f"hr-{ADA}")
    assert user_of(signed_in(bipsync)) == known
    User.objects.update(username="renamed")
    assert user_of(signed_in(bipsync)) == known
    assert User.objects.count() == 1


@pytest.mark.usefixtures("hooks")
def test_a_found_user_who_is_inactive_is_refused(bipsync: SimulatedBipsync) -> None:
    User.objects.create_user(f"hr-{ADA}", is_active=False)
    assert refused(Browser(), bipsync) == "inactive"
    assert not BipsyncToken.objects.exists()


@pytest.mark.usefixtures("hooks")
def test_create_user_and_update_user_are_called_in_their_turn(bipsync: SimulatedBipsync) -> None:
    groups = user_of(signed_in(bipsync)).groups.values_list("name", flat=True)
    assert set(groups) == {"acme"}
    groups = user_of(signed_in(bipsync)).groups.values_list("name", flat=True)
    assert set(groups) == {"acme", "returning"}


@pytest.mark.usefixtures("hooks")
def test_the_session_belongs_to_the_backend_that_signed_in(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync)
    assert browser.session["_auth_user_backend"] == f"{__name__}.Hooks"
    assert browser.get("/", secure=True).status_code == 200


def test_a_user_model_with_fields_that_nobody_fills_is_refused(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    def insist(self: User, *args: Any, **kwargs: Any) -> None:
        raise IntegrityError("NOT NULL constraint failed: auth_user.badge")

    monkeypatch.setattr(User, "save", insist)
    assert refused(Browser(), bipsync) == "account_exists"


def test_values_that_the_database_does_not_take_are_refused(
    database: str, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model that promises more than its column holds.
    monkeypatch.setattr(User._meta.get_field("first_name"), "max_length", 400)
    monkeypatch.setattr(User._meta.get_field("first_name"), "validators", [])
    long = person(given_name="x" * 300)
    if connections[database].vendor == "sqlite":
        # It takes any text.
        assert len(user_of(signed_in(bipsync, long)).first_name) == 300
        return
    assert refused(Browser(), bipsync, long) == "no_account"
    assert not BipsyncToken.objects.exists()


# --- user models that the tests of the whole flow cannot have (those are in tests/custom_user)


class Number:
    """A username field that is no text."""

    def __init__(self, default: Any = None) -> None:
        self.default = default

    def has_default(self) -> bool:
        return self.default is not None

    def get_default(self) -> Any:
        return self.default


@pytest.mark.parametrize(("default", "expected"), [(None, []), (17, [17])])
def test_a_username_that_is_no_text_comes_from_its_default(
    monkeypatch: pytest.MonkeyPatch, default: Any, expected: list[Any]
) -> None:
    field = Number(default)
    monkeypatch.setattr(users, "_field", lambda name: field)
    monkeypatch.setattr(User, "USERNAME_FIELD", "id")
    assert list(users.UserPolicy()._usernames(get_tenant(), claims_of(), {})) == expected


def test_a_model_known_by_email_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_user_model(), "EMAIL_FIELD", "username")
    with pytest.raises(SignInRefused) as refusal:
        list(users.UserPolicy()._usernames(get_tenant(), claims_of(), {}))
    assert refusal.value.reason == "no_email"


@pytest.mark.parametrize("error", [ValidationError, ValueError, TypeError, OverflowError])
def test_whatever_a_field_says_to_a_strange_claim_it_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    field = User._meta.get_field("date_joined")

    def clean(value: Any, instance: Any) -> None:
        raise error("strange")

    monkeypatch.setattr(field, "clean", clean)
    assert users._fitting(field, "x") is None


@pytest.mark.parametrize("model", ["settings", "numbered_settings"])
def test_custom_user_models_work(model: str) -> None:
    environment = {name: value for name, value in os.environ.items() if "COV" not in name}
    run = subprocess.run(
        [
            sys.executable,
            *["-m", "pytest", "-q", "-p", "no:cacheprovider"],
            f"--ds=tests.custom_user.{model}",
            str(HERE / "custom_user" / "cases.py"),
        ],
        cwd=HERE.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout

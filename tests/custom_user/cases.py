"""Signing in where the user model is the site's own; which one, the settings say."""

import uuid
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import call_command

from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync, SimulatedUser
from tests.browser import Browser, signed_in
from tests.custom_user.models import Numbered, Person, Team

pytestmark = pytest.mark.django_db(transaction=True)

known_by_email = pytest.mark.skipif(
    django_settings.AUTH_USER_MODEL != "custom_user.Person", reason="about Person"
)
known_by_number = pytest.mark.skipif(
    django_settings.AUTH_USER_MODEL != "custom_user.Numbered", reason="about Numbered"
)


def nora(number: int = 1, **claims: Any) -> SimulatedUser:
    subject = f"68b993fa85d14160d60303{number:02}"
    email = f"nora{number}@acme.example"
    return SimulatedUser(subject, "Nora Noon", "Nora", "Noon", email, extra=claims)


def who(browser: Browser) -> str:
    return str(browser.get("/", secure=True).content.decode())


def refused(bipsync: SimulatedBipsync, user: SimulatedUser) -> str:
    browser = Browser()
    page = browser.open(bipsync.approve(browser.begin(), user=user)).content.decode()
    assert browser.user_id() is None
    return str(page.partition('data-reason="')[2].partition('"')[0])


def test_the_checks_pass() -> None:
    call_command("check", fail_level="WARNING")


def test_a_person_signs_in_and_comes_back(bipsync: SimulatedBipsync) -> None:
    first = signed_in(bipsync, nora())
    second = signed_in(bipsync, nora())
    token = BipsyncToken.objects.get()
    assert who(first) == who(second) == str(token.user_id)


@known_by_email
def test_the_person_is_what_the_claims_say(bipsync: SimulatedBipsync) -> None:
    team = Team.objects.create(name="Research")
    signed_in(bipsync, nora(badge="N1", hired="2020-02-29", floor=3, team=team.pk))
    person = Person.objects.get()
    assert isinstance(person.pk, uuid.UUID)
    assert (person.email, person.name, person.badge) == ("nora1@acme.example", "Nora Noon", "N1")
    assert (str(person.hired), person.floor, person.team) == ("2020-02-29", 3, team)
    assert not person.has_usable_password()


@known_by_email
def test_a_person_without_email_is_refused(bipsync: SimulatedBipsync) -> None:
    assert refused(bipsync, nora(email=None)) == "no_email"
    assert not Person.objects.exists()


@known_by_email
def test_a_persons_email_that_somebody_has_is_refused_whatever_its_case(
    bipsync: SimulatedBipsync,
) -> None:
    Person.objects.create(email="NORA1@acme.example")
    assert refused(bipsync, nora()) == "account_exists"
    assert Person.objects.count() == 1


@known_by_email
def test_an_address_is_nobodys_name_unless_it_is_trusted(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    match = {"TENANT": "acme", "VERIFIED_CLAIM": "email_verified"}
    settings.BIPSYNC = {**settings.BIPSYNC, "MATCH_USERS_BY": match}
    assert refused(bipsync, nora()) == "no_email"
    assert not Person.objects.exists()
    bipsync.add_user(nora(email_verified=True))
    signed_in(bipsync, nora().id)
    assert Person.objects.get().email == "nora1@acme.example"


@known_by_email
def test_a_person_whom_an_address_finds_loses_their_password(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    match = {"TENANT": "acme", "VERIFIED_CLAIM": "email_verified"}
    settings.BIPSYNC = {**settings.BIPSYNC, "MATCH_USERS_BY": match}
    there = Person(email="NORA1@acme.example")
    there.set_password("secret")
    there.save()
    assert who(signed_in(bipsync, nora(email_verified=True))) == str(there.pk)
    there.refresh_from_db()
    assert not there.has_usable_password()


@known_by_email
def test_the_email_somebody_is_known_by_stays(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync, nora())
    bipsync.add_user(nora(email="other@acme.example", name="Norah"))
    signed_in(bipsync, nora().id)
    person = Person.objects.get()
    assert (person.email, person.name) == ("nora1@acme.example", "Norah")


@known_by_email
def test_a_value_that_a_constraint_refuses_locks_nobody_out(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync, nora(1, badge="N1"))
    signed_in(bipsync, nora(2, badge="N2"))
    bipsync.add_user(nora(2, badge="n1"))
    browser = signed_in(bipsync, nora(2).id)
    assert Person.objects.get(pk=who(browser)).badge == "N2"


@known_by_email
def test_a_value_that_a_constraint_refuses_at_once_is_no_500(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync, nora(1, badge="N1"))
    assert refused(bipsync, nora(2, badge="n1")) == "account_exists"


@known_by_email
@pytest.mark.parametrize(
    "claims",
    [
        {"hired": 7},
        {"hired": "soon"},
        {"hired": True},
        {"floor": float("inf")},
        {"floor": "3.5"},
        {"floor": 10**30},
        {"team": 4711},
        {"team": "Research"},
        {"name": "n" * 21},
    ],
)
def test_claims_that_do_not_fit_stop_nobody(
    bipsync: SimulatedBipsync, claims: dict[str, Any]
) -> None:
    signed_in(bipsync, nora(**claims))
    person = Person.objects.get()
    assert (person.hired, person.floor, person.team) == (None, None, None)
    assert len(person.name) <= 20


@known_by_number
def test_a_number_is_given_and_kept(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync, nora(1))
    signed_in(bipsync, nora(2))
    numbers = set(Numbered.objects.values_list("number", flat=True))
    signed_in(bipsync, nora(1))
    assert len(numbers) == 2
    assert set(Numbered.objects.values_list("number", flat=True)) == numbers

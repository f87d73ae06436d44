"""The endpoint for monitoring: counts only, and only for who shows the token."""

from typing import Any

import pytest
from django.db import Error
from django.http import HttpResponse
from django.test import Client
from django.urls import NoReverseMatch, include, path, reverse

from bipsync_django import health, monitoring
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync
from tests.browser import signed_in

pytestmark = pytest.mark.django_db(transaction=True)

TOKEN = "monitoring-" + "m" * 32
URL = "/monitoring/bipsync/"

urlpatterns = [
    path("bipsync/", include("bipsync_django.urls")),
    path(URL[1:], monitoring.health),
]


@pytest.fixture(autouse=True)
def _routed(settings: Any, bipsync: SimulatedBipsync) -> None:
    settings.ROOT_URLCONF = __name__
    settings.BIPSYNC = {**settings.BIPSYNC, "HEALTH_TOKEN": lambda: TOKEN}


def ask(token: str | None = TOKEN, **headers: str) -> Any:
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return Client().get(URL, headers=headers)


def test_it_says_how_many_are_how(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync)
    BipsyncToken.objects.update(attempt=2)
    response = ask()
    assert response.status_code == 200
    assert response.json() == {
        "tenants": {
            "acme": {
                "active": 1,
                "needs_sign_in": 0,
                "unconfirmed": 0,
                "disconnected": 0,
                "refresh_failing": 1,
                "refresh_overdue": 0,
                "held_back": 0,
            }
        },
        "removed_tenants": {},
    }
    assert "no-store" in response["Cache-Control"]


@pytest.mark.parametrize(
    "token", [None, "", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), "é", "x" * 100_000]
)
def test_who_does_not_show_the_token_learns_nothing(token: str | None) -> None:
    response = ask(token)
    assert (response.status_code, response.json()) == (401, {"error": "token_refused"})
    assert response["WWW-Authenticate"].startswith("Bearer")


def test_the_token_is_taken_from_its_header_alone() -> None:
    for query in ({"token": TOKEN}, {"Authorization": f"Bearer {TOKEN}"}):
        assert Client().get(URL, query).status_code == 401


def test_it_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def note(shown: str, token: str) -> bool:
        compared.append((shown, token))
        return False

    monkeypatch.setattr(monitoring, "constant_time_compare", note)
    assert ask().status_code == 401
    assert compared == [(TOKEN, TOKEN)]


@pytest.mark.parametrize("value", [None, "absent"])
def test_without_a_token_there_is_nothing_here(settings: Any, value: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "HEALTH_TOKEN": value}
    if value == "absent":
        del settings.BIPSYNC["HEALTH_TOKEN"]
    assert ask("").status_code == 404


def test_nothing_leads_here_unless_the_site_says_so() -> None:
    with pytest.raises(NoReverseMatch):
        reverse("bipsync:health")
    assert HttpResponse(status=404).status_code == Client().get("/bipsync/health/").status_code


def test_nothing_but_reading_is_allowed() -> None:
    assert Client().post(URL, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 405


@pytest.mark.parametrize("token", ["short", "env:NO_SUCH_VARIABLE"])
def test_a_token_that_is_none_is_said_to_administrators(
    settings: Any, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "HEALTH_TOKEN": token}
    for shown in (token, ""):
        response = ask(shown)
        assert (response.status_code, response.json()) == (503, {"error": "misconfigured"})
    assert "HEALTH_TOKEN" in caplog.text


def test_a_database_that_is_away_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise Error("with a password in it")

    monkeypatch.setattr(health, "tenants", fail)
    response = ask()
    assert (response.status_code, response.json()) == (503, {"error": "database"})
    assert "password" not in caplog.text

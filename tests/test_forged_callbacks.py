"""Twenty thousand forged callbacks, to browsers with trips of their own under way."""

import re
from collections.abc import Iterator, Mapping
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth.models import User

from bipsync_django import limits
from bipsync_django.failures import FAILURES
from bipsync_django.models import BipsyncToken, SpentState
from bipsync_django.testing import SimulatedBipsync
from bipsync_django.testing.site import SimulatedSite
from tests.browser import LOGIN, Browser
from tests.callbacks import HERE, KINDS, Callback, Forger, Loot, forged

pytestmark = pytest.mark.django_db(transaction=True)

EACH = 1_800
# Each of these asks Bipsync about a code, over HTTP.
ASKING = {"wrong_code": 300}
# After so many forged callbacks the browser's own one has to work all the same.
BATCH = 300

Tenants = Mapping[str, SimulatedBipsync]


@pytest.fixture
def tenants(settings: Any) -> Iterator[Tenants]:
    settings.BIPSYNC = {
        "ALLOW_INSECURE_LOOPBACK": True,
        "SCOPES": ["users:read"],
        "TENANTS": {"acme": {"CLIENT_ID": "portal"}, "globex": {"CLIENT_ID": "portal"}},
    }
    with SimulatedSite(settings.BIPSYNC) as site:
        settings.BIPSYNC = site.settings
        site.allow("https://testserver")
        yield site.tenants


@pytest.fixture(autouse=True)
def _unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of them is to be looked at; how many there may be is tried in test_limits.py."""
    monkeypatch.setattr(limits, "MOST_UNCONFIRMED", 1_000_000)


def begin(browser: Browser, tenant: SimulatedBipsync) -> tuple[str, str]:
    """Begin a trip and approve it; return its state and its code, which is not used yet."""
    away = browser.get(f"{LOGIN}{tenant.client}/", secure=True)["Location"]
    query = parse_qs(urlsplit(tenant.approve(away)).query)
    return query["state"][0], query["code"][0]


def loot_of(victim: Browser, attacker: Browser, tenants: Tenants) -> Loot:
    spent, _ = begin(attacker, tenants["acme"])
    attacker.open(f"{HERE}?error=access_denied&state={spent}")
    return Loot(
        *begin(victim, tenants["acme"]),
        *begin(victim, tenants["acme"]),
        *begin(attacker, tenants["acme"]),
        *begin(victim, tenants["globex"]),
        spent,
    )


def visit(browser: Browser, callback: Callback) -> Any:
    return browser.get(callback.path, secure=True, QUERY_STRING=callback.query)


def assert_refused(response: Any, browser: Browser, callback: Callback) -> None:
    assert 400 <= response.status_code < 600, callback
    assert response.status_code != 500, callback
    assert "Location" not in response, callback
    assert "sessionid" not in browser.cookies, callback
    reason = re.search(r'data-reason="(\w+)"', response.content.decode())
    if reason is None:
        # Django's own refusal of a thousand parameters, before anything of ours is asked.
        assert response.status_code == 400, callback
        assert callback.query.count("&") > 1000, callback
    else:
        assert response.status_code == FAILURES[reason[1]].status, callback


def test_they_are_twenty_thousand() -> None:
    assert sum(ASKING.get(name, EACH) for name in KINDS) >= 20_000


@pytest.mark.parametrize("name", KINDS)
def test_no_forged_callback_signs_anybody_in(name: str, tenants: Tenants) -> None:
    forger = Forger(name)
    left = ASKING.get(name, EACH)
    tried: set[Callback] = set()
    while left > 0:
        victim = Browser()
        loot = loot_of(victim, Browser(), tenants)
        carried = {name: morsel.value for name, morsel in victim.cookies.items()}
        spent = list(SpentState.objects.values_list("pk", flat=True))
        for _ in range(batch := min(left, BATCH)):
            callback = forged(name, forger, loot)
            tried.add(callback)
            assert_refused(visit(victim, callback), victim, callback)
            # The trip is under way each time, even if the last one has used it up.
            victim.cookies = SimpleCookie(carried)
            SpentState.objects.exclude(pk__in=spent).delete()
        left -= batch
        assert not BipsyncToken.objects.exists()
        assert not User.objects.exists()
        good = f"state={loot.state}&code={loot.code}"
        assert visit(victim, Callback(HERE, good)).status_code == 302
        assert victim.user_id() == str(User.objects.get().pk)
        User.objects.all().delete()
    assert len(tried) > 0.8 * ASKING.get(name, EACH)
    if name not in ASKING:
        honest = -(-EACH // BATCH)
        assert sum(tenant.calls["code"] for tenant in tenants.values()) == honest

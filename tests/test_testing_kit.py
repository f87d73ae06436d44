"""What sites test with: fixtures, a mixin, and nothing beyond this machine."""

import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, LiveServerTestCase, TestCase, override_settings

from bipsync_django import lifecycle
from bipsync_django.conf import get_tenant
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync
from bipsync_django.testing.testcase import BipsyncTestMixin
from tests.browser import chromium

OWN: dict[str, Any] = {"CLIENT_ID": "real", "CLIENT_SECRET": "env:NOT_SET"}
GRACE = "grace@acme.example"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail whatever goes beyond this machine."""
    connect = socket.socket.connect

    def on_loopback(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else address
        assert host in {"127.0.0.1", "::1", "localhost"} or str(host).startswith("/"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", on_loopback)
    return


# --- fixtures


@pytest.mark.django_db
def test_a_test_of_one_tenant_needs_one_line(
    client: Client, bipsync: SimulatedBipsync, bipsync_sign_in: Callable[..., Any], settings: Any
) -> None:
    assert settings.DEBUG is False
    response = bipsync_sign_in(client, user=GRACE, next="/reports/")
    assert (response.status_code, response["Location"]) == (302, "/reports/")
    assert client.get("/", secure=True).status_code == 200
    assert get_tenant().token_url.startswith(bipsync.url)


@pytest.fixture
def several(settings: Any) -> None:
    settings.BIPSYNC = {
        "SCOPES": ["users:read"],
        "CREATE_USERS": False,
        "TENANTS": {
            "acme": {**OWN, "AUDIENCE": "x", "REDIRECT_URI": "https://portal.example/callback/"},
            "globex": {**OWN, "CREATE_USERS": True, "NAME": "Globex", "CLIENT": "globex-uk"},
        },
    }


@pytest.mark.django_db
@pytest.mark.usefixtures("several")
def test_each_tenant_has_a_client_of_its_own(
    client: Client,
    bipsync_tenants: Mapping[str, SimulatedBipsync],
    bipsync: SimulatedBipsync,
    bipsync_sign_in: Callable[..., Any],
) -> None:
    assert list(bipsync_tenants) == ["acme", "globex"]
    assert bipsync is bipsync_tenants["acme"]
    assert bipsync_sign_in(client).context["reason"] == "no_account", "the site's own policy stays"
    assert bipsync_sign_in(client, tenant="globex").status_code == 302
    assert (bipsync.calls["code"], bipsync_tenants["globex"].calls["code"]) == (1, 1)
    assert get_tenant("globex").name == "Globex"
    assert BipsyncToken.objects.exclude(user=None).get().tenant == "globex"


@pytest.mark.django_db
def test_the_tenant_keeps_its_name(client: Client, settings: Any, request: Any) -> None:
    settings.BIPSYNC = {
        **settings.BIPSYNC,
        "CLIENT": "initech",
        "MATCH_USERS_BY": {"TENANT": "initech", "TRUST_UNVERIFIED": True},
    }
    user = User.objects.create_user("ada", "ada@acme.example")
    request.getfixturevalue("bipsync_sign_in")(client)
    assert BipsyncToken.objects.get().user == user
    assert BipsyncToken.objects.get().tenant == "initech"


@pytest.mark.django_db
def test_an_account_is_connected(
    client: Client, bipsync_connect: Callable[..., Any], bipsync_sign_in: Callable[..., Any]
) -> None:
    user = User.objects.create_user("boss", password="secret")
    client.force_login(user)
    response = bipsync_connect(client, user=GRACE, next="/done/")
    assert (response.status_code, response["Location"]) == (302, "/done/")
    assert BipsyncToken.objects.get().user == user


@pytest.mark.django_db
def test_a_site_that_does_not_send_people_to_bipsync_is_told_so(
    client: Client, bipsync_sign_in: Callable[..., Any], settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "LEEWAY": "x"}
    with pytest.raises(AssertionError, match="answered 503, and not with the way to Bipsync"):
        bipsync_sign_in(client)


@pytest.mark.django_db
def test_strict_cookies_and_forced_https_are_no_hindrance(
    client: Client, bipsync_sign_in: Callable[..., Any], settings: Any
) -> None:
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    settings.SECURE_SSL_REDIRECT = True
    assert bipsync_sign_in(client).status_code == 302
    assert client.get("/", secure=True).status_code == 200


# --- without pytest


class MixinTest(BipsyncTestMixin, TestCase):
    def test_five_lines(self) -> None:
        self.bipsync_sign_in()
        self.assertEqual(self.client.get("/", secure=True).status_code, 200)
        self.assertEqual(User.objects.get().first_name, "Ada")

    def test_each_test_has_a_bipsync_of_its_own(self) -> None:
        self.assertEqual(sum(self.bipsync.calls.values()), 0)
        self.assertFalse(BipsyncToken.objects.exists())
        other = Client()
        self.bipsync_sign_in(other, user=GRACE, next="/x/")
        self.assertEqual(self.bipsync.calls["code"], 1)
        self.assertEqual(other.get("/", secure=True).status_code, 200)
        self.assertEqual(self.client.get("/", secure=True).status_code, 302)

    def test_an_account_is_connected(self) -> None:
        user = User.objects.create_user("boss")
        self.client.force_login(user)
        self.assertEqual(self.bipsync_connect().status_code, 302)
        self.assertEqual(BipsyncToken.objects.get().user, user)

    def test_a_refresh_works_inside_a_test_case(self) -> None:
        self.bipsync_sign_in()
        token = lifecycle.refresh(BipsyncToken.objects.get(), force=True)
        self.assertEqual(token.generation, 1, "younger than half a minute")


@override_settings(
    BIPSYNC={"SCOPES": ["users:read"], "TENANTS": {"acme": OWN, "globex": OWN}}, DEBUG=False
)
class SeveralTenantsTest(BipsyncTestMixin, TestCase):
    def test_they_are_told_apart(self) -> None:
        self.bipsync_sign_in(tenant="globex")
        self.assertEqual(self.bipsync_tenants["globex"].calls["code"], 1)
        self.assertEqual(self.bipsync.calls["code"], 0)


class LiveTest(BipsyncTestMixin, LiveServerTestCase):
    def test_a_person_signs_in_with_a_browser(self) -> None:
        with chromium() as browser:
            page = browser.new_page()
            page.goto(f"{self.live_server_url}/bipsync/login/?next=/greeting/")
            self.assertTrue(page.url.startswith(self.bipsync.url))
            page.get_by_label("Grace Hopper").check()
            page.get_by_role("button", name="Allow").click()
            self.assertEqual(page.url, f"{self.live_server_url}/greeting/")
            self.assertEqual(page.inner_text("body"), "Hello grace")


def test_nothing_but_django_is_needed_to_import_it() -> None:
    """No pytest, and for the simulated Bipsync no settings either."""
    for code in (
        "import bipsync_django.testing, bipsync_django.testing.__main__",
        "import django; from django.conf import settings; settings.configure(); django.setup();"
        " import bipsync_django.testing.testcase",
    ):
        script = f"import sys; sys.modules['pytest'] = None; {code}"
        subprocess.run([sys.executable, "-c", script], check=True, env={})

"""Which sessions end with a grant and which do not, seen from a browser alone."""

from typing import Any

import pytest
from django.contrib.auth.models import User

from bipsync_django import lifecycle
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync
from tests.browser import Browser, signed_in
from tests.grants import expire

pytestmark = pytest.mark.django_db(transaction=True)

ADA = "ada@acme.example"
GREETING = "/greeting/"


@pytest.fixture(autouse=True)
def _asked_at_each_request(bipsync: SimulatedBipsync, settings: Any) -> None:
    """Otherwise a pass that is remembered answers, and not what the test is about."""
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 0}


@pytest.fixture
def ada(bipsync: SimulatedBipsync) -> Browser:
    return signed_in(bipsync, ADA)


def lapse(bipsync: SimulatedBipsync) -> None:
    """Let Ada withdraw her consent at Bipsync, and the next refresh find that out."""
    bipsync.withdraw(ADA)
    lifecycle.refresh_if_due(expire(BipsyncToken.objects.get()).pk)
    assert BipsyncToken.objects.get().status == "needs_sign_in"


def test_somebody_who_declines_to_sign_in_again_is_signed_out(
    bipsync: SimulatedBipsync, ada: Browser
) -> None:
    lapse(bipsync)
    before = ada.user_id()
    trip = ada.open(ada.open("/")["Location"])["Location"]
    assert before is not None
    page = ada.open(bipsync.decline(trip))
    assert b'data-reason="declined"' in page.content
    assert ada.user_id() is None
    # For good: the session does not come back with the grant.
    BipsyncToken.objects.update(status="active")
    assert ada.open(GREETING).content == b"Hello visitor"


def test_somebody_who_declines_while_the_connection_works_stays_signed_in(
    bipsync: SimulatedBipsync, ada: Browser
) -> None:
    page = ada.open(bipsync.decline(ada.begin()))
    assert b'data-reason="declined"' in page.content
    assert ada.open(GREETING).content == b"Hello ada"


@pytest.mark.parametrize("how", ["disconnected", "ended", "withdrawn"])
def test_a_session_that_goes_on_with_a_password_depends_on_that_alone(
    bipsync: SimulatedBipsync, ada: Browser, how: str
) -> None:
    user = User.objects.get()
    user.set_password("pw")
    user.is_staff = True
    user.save()
    # Signed in once more, because the new password has ended the session.
    ada.open(bipsync.approve(ada.begin(), user=ADA))
    credentials = {"username": "ada", "password": "pw", "next": "/"}
    assert ada.post("/admin/login/", credentials, secure=True).status_code == 302
    if how == "withdrawn":
        lapse(bipsync)
    else:
        end = {"disconnected": lifecycle.disconnect, "ended": lifecycle.end_sessions}[how]
        end(BipsyncToken.objects.get())
    assert ada.open("/").content == b"Signed in as ada"

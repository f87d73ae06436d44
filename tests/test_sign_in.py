from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_first_sign_in_makes_a_user_and_stores_the_pair(
    client: Client, bipsync: SimulatedBipsync, sign_in: Any
) -> None:
    response = sign_in(client, next="/?tab=1")
    assert (response.status_code, response["Location"]) == (302, "/?tab=1")
    user = User.objects.get()
    token = BipsyncToken.objects.get()
    assert token.user == user
    assert (user.first_name, user.last_name) == ("Ada", "Lovelace")
    assert not user.has_usable_password()
    assert not user.is_staff
    refresh_token = token.unseal("refresh_token")
    assert refresh_token is not None
    assert bipsync.is_alive(refresh_token)
    assert client.get("/", secure=True).status_code == 200

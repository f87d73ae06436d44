"""The admin shows how tokens are, changes nothing and holds no secret."""

import csv
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from bipsync_django.admin import BipsyncTokenAdmin
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.testing import SimulatedBipsync, SimulatedUser
from tests.browser import signed_in, visible_text

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/bipsync_django/bipsynctoken/"


@pytest.fixture
def root() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root", "root@acme.example", "secret"))
    return client


@pytest.fixture
def token(bipsync: SimulatedBipsync) -> BipsyncToken:
    signed_in(bipsync)
    return BipsyncToken.objects.get()


def staff(*permissions: str) -> Client:
    user = User.objects.create_user("clerk", is_staff=True)
    for codename in permissions:
        user.user_permissions.add(Permission.objects.get(codename=codename))
    client = Client()
    client.force_login(user)
    return client


def secrets_of(token: BipsyncToken) -> list[str]:
    """Plaintext and ciphertext of a row, and pieces of them long enough to be telling."""
    access, refresh = token.unseal("access_token"), token.unseal("refresh_token")
    assert access
    assert refresh
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT access_token, refresh_token FROM bipsync_django_bipsynctoken WHERE id = %s",
            [token.pk],
        )
        stored: list[str] = list(cursor.fetchone())
    whole = [access, refresh, *stored]
    assert all(len(secret) > 300 for secret in whole)
    return [piece for secret in whole for piece in (secret[:40], secret[-40:], secret[100:140])]


def shows(response: Any, token: BipsyncToken) -> list[str]:
    page = response.content.decode() + str(response.headers)
    return [secret for secret in secrets_of(token) if secret in page]


def detail(token: BipsyncToken) -> str:
    return f"{LIST}{token.pk}/change/"


# --- looking


def test_the_list_says_who_is_connected_and_how_that_is_going(
    root: Client, token: BipsyncToken
) -> None:
    BipsyncToken.objects.update(last_error="invalid_grant", status="needs_sign_in")
    text = visible_text(root.get(LIST).content.decode())
    assert "ada ✕ needs sign-in" in text
    assert "Bipsync says that the permission was withdrawn or has run out." in text


def test_a_service_account_is_called_by_its_subject(root: Client) -> None:
    BipsyncToken.objects.create(tenant="acme", kind="service", subject="robot-7", client_id="x")
    assert "robot-7 ● active" in visible_text(root.get(LIST).content.decode())


def test_a_doubt_is_told_in_words_and_none_is_not(root: Client, token: BipsyncToken) -> None:
    page = visible_text(root.get(f"{LIST}{token.pk}/change/").content.decode())
    assert "The answer to a refresh" not in page
    BipsyncToken.objects.update(in_doubt_at=datetime(2026, 1, 31, 12, 0, tzinfo=UTC))
    page = visible_text(root.get(f"{LIST}{token.pk}/change/").content.decode())
    assert "The answer to a refresh of Jan. 31, 2026, noon was lost." in page


def test_the_page_of_a_token_says_what_is_known(root: Client, token: BipsyncToken) -> None:
    response = root.get(detail(token))
    text = visible_text(response.content.decode())
    assert response.status_code == 200
    for shown in ("ada", "acme", token.subject, "users:read", "portal", "active"):
        assert shown in text
    assert not re.findall(r'<input[^>]*type="(?:text|submit|number)"', response.content.decode())


@pytest.mark.parametrize("query", ["68b993fa", "acme", "ada", "ADA", "nobody"])
def test_tokens_are_found_by_subject_tenant_and_name(
    root: Client, token: BipsyncToken, query: str
) -> None:
    text = visible_text(root.get(LIST, {"q": query}).content.decode())
    assert ("0 Bipsync tokens" in text) is (query == "nobody")


def test_the_list_costs_the_same_number_of_queries_for_3_and_30_tokens(
    root: Client, bipsync: SimulatedBipsync
) -> None:
    def add(numbers: range) -> None:
        for number in numbers:
            user = User.objects.create_user(f"user{number}")
            BipsyncToken.objects.create(
                tenant="acme", subject=f"subject-{number}", user=user, client_id="portal"
            )

    def count() -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert root.get(LIST).status_code == 200
        return len(queries)

    add(range(3))
    count()
    few = count()
    add(range(3, 30))
    assert count() == few
    assert few <= 14


# --- changing nothing


def test_nothing_can_be_added(root: Client, token: BipsyncToken) -> None:
    assert root.get(f"{LIST}add/").status_code == 403
    assert root.post(f"{LIST}add/", {"tenant": "x", "subject": "y"}).status_code == 403
    assert BipsyncToken.objects.count() == 1


@pytest.mark.parametrize("button", ["_save", "_continue", "_saveasnew", "_addanother"])
def test_nothing_can_be_changed(root: Client, token: BipsyncToken, button: str) -> None:
    data = {"tenant": "x", "subject": "y", "access_token": "z", "user": "", button: "1"}
    assert root.post(detail(token), data).status_code == 403
    again = BipsyncToken.objects.get()
    assert (again.tenant, again.subject, again.user) == ("acme", token.subject, token.user)
    assert again.access_token == token.access_token


def test_nothing_can_be_deleted(root: Client, token: BipsyncToken) -> None:
    assert root.get(f"{LIST}{token.pk}/delete/").status_code == 403
    assert root.post(f"{LIST}{token.pk}/delete/", {"post": "yes"}).status_code == 403
    root.post(LIST, {"action": "delete_selected", "_selected_action": [token.pk], "post": "yes"})
    assert BipsyncToken.objects.count() == 1
    assert b"delete_selected" not in root.get(LIST).content


def test_the_list_cannot_be_edited_in_place(root: Client, token: BipsyncToken) -> None:
    data = {
        "form-TOTAL_FORMS": "1",
        "form-INITIAL_FORMS": "1",
        "form-0-id": str(token.pk),
        "form-0-tenant": "x",
        "_save": "Save",
    }
    root.post(LIST, data)
    assert BipsyncToken.objects.get().tenant == "acme"


# --- no secret


def test_no_page_shows_a_secret(root: Client, token: BipsyncToken) -> None:
    assert token.user is not None
    pages = [
        "/admin/",
        "/admin/bipsync_django/",
        LIST,
        detail(token),
        f"{LIST}{token.pk}/history/",
        reverse("admin:auth_user_change", args=[token.user.pk]),
        reverse("admin:auth_user_delete", args=[token.user.pk]),
    ]
    for page in pages:
        response = root.get(page)
        assert response.status_code == 200, page
        assert shows(response, token) == [], page


def test_the_encrypted_columns_are_not_even_read(root: Client, token: BipsyncToken) -> None:
    with CaptureQueriesContext(connection) as queries:
        root.get(LIST)
        root.get(detail(token))
    assert len(queries) > 4
    assert not [q["sql"] for q in queries if "access_token" in q["sql"]]
    assert not [q["sql"] for q in queries if "refresh_token" in q["sql"]]


def test_an_export_action_of_the_sites_own_writes_no_secret(
    root: Client, token: BipsyncToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(admin_: Any, request: Any, rows: Any) -> HttpResponse:
        sheet = HttpResponse(content_type="text/csv")
        columns = [field.name for field in BipsyncToken._meta.concrete_fields]
        csv.writer(sheet).writerows(rows.values_list(*columns))
        csv.writer(sheet).writerows([getattr(row, name) for name in columns] for row in rows)
        return sheet

    monkeypatch.setattr(BipsyncTokenAdmin, "actions", [export])
    chosen = {"action": "export", "_selected_action": [str(token.pk)]}
    response = root.post(LIST, chosen)
    assert response["Content-Type"] == "text/csv"
    assert response.content.decode().count(token.subject) == 2
    assert response.content.decode().count("<sealed>") == 4
    assert shows(response, token) == []


TRICKS: list[dict[str, str]] = [
    {"access_token__startswith": "ey"},
    {"access_token__contains": "a"},
    {"access_token__regex": "^e"},
    {"access_token__gt": "A"},
    {"access_token__in": "a,b"},
    {"access_token__exact": "x"},
    {"access_token": "x"},
    {"access_token__isnull": "True"},
    {"access_token__isnull": "x"},
    {"access_token__length": "3"},
    {"refresh_token__startswith": "def50200"},
    {"user__bipsync_tokens__access_token__startswith": "ey"},
    {"user__bipsync_tokens__refresh_token__isnull": "False"},
    {"events__token__access_token__startswith": "ey"},
    {"user__password__startswith": "!"},
    {"o": "1.2.3.-4"},
    {"o": "99"},
    {"o": "access_token"},
    {"o": "-access_token"},
    {"order_by": "access_token"},
    {"_to_field": "access_token"},
    {"_to_field": "id"},
    {"_popup": "1", "_to_field": "refresh_token"},
    {"_facets": "True"},
    {"q": "access_token"},
    {"q": "\x00"},
    {"q": '"'},
    {"p": "x"},
    {"p": "999"},
    {"all": ""},
    {"e": "1"},
    {"status__exact": "no such"},
    {"tenant": ""},
    {"no_such_field": "1"},
    {"lease_id__startswith": "a"},
    {"generation__gt": "x"},
]


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: urlencode(trick))
@pytest.mark.parametrize("page", ["list", "detail", "history"])
def test_no_trick_with_the_address_shows_a_secret_or_breaks(
    root: Client, token: BipsyncToken, trick: dict[str, str], page: str
) -> None:
    path = {"list": LIST, "detail": detail(token), "history": f"{LIST}{token.pk}/history/"}[page]
    for follow in (False, True):
        response = root.get(path, trick, follow=follow)
        assert response.status_code in {200, 302, 400}
        assert shows(response, token) == []


@pytest.mark.parametrize("lookup", ["startswith", "contains", "regex", "gt", "exact", "in"])
@pytest.mark.parametrize("column", ["access_token", "refresh_token"])
def test_an_encrypted_column_cannot_be_guessed_at(
    root: Client, token: BipsyncToken, column: str, lookup: str
) -> None:
    # The right guess and a wrong one get the same answer, which is none.
    sealed = getattr(token, column).ciphertext
    answers = [
        root.get(LIST, {f"{column}__{lookup}": guess}) for guess in (sealed, sealed[:6], "wrong")
    ]
    assert {(answer.status_code, answer["Location"]) for answer in answers} == {
        (302, f"{LIST}?e=1")
    }


def test_a_token_cannot_be_fetched_by_its_secret(root: Client, token: BipsyncToken) -> None:
    refresh_token = token.unseal("refresh_token")
    response = root.get(f"{LIST}{refresh_token}/change/", {"_to_field": "refresh_token"})
    assert response.status_code == 400


# --- other people's permissions


@pytest.mark.parametrize("permission", [None, "add_bipsynctoken", "delete_bipsynctoken"])
def test_staff_without_the_view_permission_see_no_tokens(
    token: BipsyncToken, permission: str | None
) -> None:
    clerk = staff(*[permission] if permission else [])
    assert [clerk.get(page).status_code for page in (LIST, detail(token))] == [403, 403]


def test_the_change_permission_is_one_to_look(token: BipsyncToken) -> None:
    # As everywhere in Django's admin, who may change may look. Change they may not.
    clerk = staff("change_bipsynctoken")
    assert clerk.get(LIST).status_code == 200
    assert clerk.post(detail(token), {"_save": "1"}).status_code == 403


def test_staff_with_the_view_permission_may_look(token: BipsyncToken) -> None:
    clerk = staff("view_bipsynctoken")
    assert clerk.get(LIST).status_code == 200
    response = clerk.get(detail(token))
    assert response.status_code == 200
    assert shows(response, token) == []


def test_people_without_access_to_the_admin_are_sent_to_its_login(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    visitor = signed_in(bipsync)
    for client in (Client(), visitor):
        response = client.get(LIST, secure=True)
        assert (response.status_code, response["Location"][:13]) == (302, "/admin/login/")


# --- people who have tokens


def test_a_person_with_a_token_can_be_deleted_by_who_may_delete_people(
    token: BipsyncToken,
) -> None:
    clerk = staff("view_user", "delete_user")
    assert token.user is not None
    page = reverse("admin:auth_user_delete", args=[token.user.pk])
    shown = clerk.get(page)
    assert shown.status_code == 200
    assert "would require deleting the following protected" not in shown.content.decode()
    assert clerk.post(page, {"post": "yes"}).status_code == 302
    assert not User.objects.filter(username="ada").exists()
    assert not BipsyncToken.objects.exists()
    assert TokenEvent.objects.get().token is None


def test_people_with_tokens_can_be_deleted_from_the_list(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    signed_in(bipsync, SimulatedUser("68b993fa85d14160d4030399", "B", "B", "B", "b@acme.example"))
    clerk = staff("view_user", "delete_user")
    people = User.objects.exclude(username="clerk").values_list("pk", flat=True)
    data = {"action": "delete_selected", "_selected_action": list(people), "post": "yes"}
    assert clerk.post(reverse("admin:auth_user_changelist"), data).status_code == 302
    assert [user.username for user in User.objects.all()] == ["clerk"]
    assert not BipsyncToken.objects.exists()


def test_who_may_not_delete_people_cannot_delete_their_tokens_that_way(
    token: BipsyncToken,
) -> None:
    clerk = staff("view_user", "delete_bipsynctoken", "view_bipsynctoken")
    assert token.user is not None
    page = reverse("admin:auth_user_delete", args=[token.user.pk])
    assert clerk.post(page, {"post": "yes"}).status_code == 403
    assert clerk.post(f"{LIST}{token.pk}/delete/", {"post": "yes"}).status_code == 403
    assert BipsyncToken.objects.exists()

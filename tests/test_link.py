"""``manage.py bipsync_link``: existing staff and their Bipsync accounts, from a file."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command

from bipsync_django import lifecycle, signals
from bipsync_django.conf import get_tenant
from bipsync_django.exceptions import LinkRefused
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.testing import SimulatedBipsync
from tests.browser import Browser, signed_in
from tests.grants import at_once, connect

pytestmark = pytest.mark.usefixtures("database")

ADA, GRACE, ZOE = (f"68b993fa85d14160d403039{number}" for number in (1, 2, 3))


@pytest.fixture
def staff(bipsync: SimulatedBipsync) -> dict[str, User]:
    return {name: User.objects.create_user(name, password="secret") for name in ("ada", "grace")}


class Run:
    """What the command printed, and whether it failed."""

    def __init__(self, folder: Path, text: str | bytes, *options: str) -> None:
        file = folder / "links.csv"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        out, err = io.StringIO(), io.StringIO()
        self.failed = ""
        try:
            call_command("bipsync_link", "--csv", str(file), *options, stdout=out, stderr=err)
        except CommandError as error:
            self.failed = str(error)
        self.out, self.err = out.getvalue(), err.getvalue()


def links() -> dict[str, str]:
    rows = BipsyncToken.objects.exclude(user=None)
    return {row.subject: row.user.username for row in rows if row.user is not None}


def test_staff_are_linked_and_sign_in_as_who_they_were(
    staff: dict[str, User], bipsync: SimulatedBipsync, tmp_path: Path
) -> None:
    User.objects.filter(username="ada").update(is_superuser=True, is_staff=True)
    run = Run(tmp_path, f"username,subject\nada,{ADA}\ngrace,{GRACE}\n")
    assert not run.failed
    assert run.out.splitlines() == [
        f"Line 2: ada – acme/{ADA}: linked (a superuser)",
        f"Line 3: grace – acme/{GRACE}: linked",
        "2 lines are carried out.",
    ]
    assert links() == {ADA: "ada", GRACE: "grace"}
    assert set(TokenEvent.objects.values_list("name", flat=True)) == {"linked"}
    assert signed_in(bipsync, ADA).user_id() == str(staff["ada"].pk)
    assert User.objects.count() == 2
    staff["ada"].refresh_from_db()
    assert staff["ada"].is_superuser
    assert staff["ada"].check_password("secret")


def test_a_dry_run_says_the_same_and_changes_nothing(
    staff: dict[str, User], tmp_path: Path
) -> None:
    run = Run(tmp_path, f"username,subject\nada,{ADA}\n", "--dry-run")
    assert run.out.splitlines() == [
        f"Line 2: ada – acme/{ADA}: would be linked",
        "Nothing was changed: 1 lines could be carried out.",
    ]
    assert not BipsyncToken.objects.exists()
    assert not TokenEvent.objects.exists()


def test_a_second_run_changes_nothing(staff: dict[str, User], tmp_path: Path) -> None:
    text = f"username,subject\nada,{ADA}\n"
    Run(tmp_path, text)
    run = Run(tmp_path, text)
    assert "is linked already" in run.out
    assert TokenEvent.objects.count() == 1


def test_every_wrong_line_is_named_and_then_nothing_is_changed(
    staff: dict[str, User], bipsync: SimulatedBipsync, tmp_path: Path
) -> None:
    signed_in(bipsync, ZOE)
    User.objects.create_user("gone", is_active=False)
    lines = [
        f"ada,{ADA},acme",
        f"nobody,{GRACE},acme",
        "grace,,acme",
        f"gone,{GRACE},acme",
        f"grace,{GRACE},initech",
        f"grace,{ZOE},acme",
        f"ada,{GRACE},acme",
        f"grace,{ADA},acme",
        "grace,a\u0007b,acme",
        f"grace,{GRACE},acme,more",
        f"ADA,{GRACE},acme",
    ]
    run = Run(tmp_path, "\n".join(["username,subject,tenant", *lines]))
    assert run.failed == "10 of the lines cannot be used, so nothing was changed."
    found = dict(line.split(": ", 1) for line in run.err.splitlines())
    assert set(found) == {f"Line {number}" for number in range(3, 13)}
    assert "no user 'nobody'" in found["Line 3"]
    assert "no usable subject" in found["Line 4"]
    assert "switched off" in found["Line 5"]
    assert "no tenant 'initech'" in found["Line 6"]
    assert "belongs to zoe already" in found["Line 7"]
    assert "the contrary of line 2" in found["Line 8"]
    assert "the contrary of line 2" in found["Line 9"]
    assert "no usable subject" in found["Line 10"]
    assert "more values" in found["Line 11"]
    assert "no user 'ADA'" in found["Line 12"]
    assert links() == {ZOE: "zoe"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names: nothing"),
        ("name,subject\nada,x\n", "names: name, subject"),
        ("username,subject,password\nada,x,y\n", "names: username, subject, password"),
        (b"username,subject\n\xff\xfe,x\n", "cannot be read as a CSV file in UTF-8"),
        ('username,subject\n"ada,x\n', "cannot be read as a CSV file in UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    staff: dict[str, User], tmp_path: Path, text: str | bytes, said: str
) -> None:
    assert said in Run(tmp_path, text).failed


def test_a_file_that_is_not_there_is_said_so(bipsync: SimulatedBipsync) -> None:
    with pytest.raises(CommandError, match="cannot be read"):
        call_command("bipsync_link", "--csv", "/nowhere/links.csv")


def test_a_spreadsheets_file_and_standard_input_work(
    staff: dict[str, User], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(tmp_path, f"\ufeffusername,subject\r\nada,{ADA}\r\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"subject,username\n{GRACE},grace\n"))
    call_command("bipsync_link", "--csv", "-", stdout=io.StringIO())
    assert links() == {ADA: "ada", GRACE: "grace"}


def test_several_tenants_have_to_be_named(
    staff: dict[str, User], settings: Any, tmp_path: Path
) -> None:
    own = {key: value for key, value in settings.BIPSYNC.items() if key != "CLIENT"}
    loopback = own.pop("ALLOW_INSECURE_LOOPBACK")
    settings.BIPSYNC = {
        "ALLOW_INSECURE_LOOPBACK": loopback,
        "TENANTS": {"acme": own, "globex": own},
    }
    assert "name one of them" in Run(tmp_path, f"username,subject\nada,{ADA}\n").err
    run = Run(tmp_path, f"username,subject,tenant\nada,{ADA},globex\nada,{ADA},acme\n")
    assert not run.failed
    assert set(BipsyncToken.objects.values_list("tenant", flat=True)) == {"acme", "globex"}


def test_another_account_is_given_up_only_when_that_is_asked_for(
    staff: dict[str, User], bipsync: SimulatedBipsync, tmp_path: Path
) -> None:
    token = connect(bipsync, user=staff["ada"])
    text = f"username,subject\nada,{GRACE}\n"
    run = Run(tmp_path, text)
    assert f"ada has the Bipsync account {ADA} already" in run.err
    assert links() == {ADA: "ada"}
    run = Run(tmp_path, text, "--replace")
    assert not run.failed
    assert links() == {GRACE: "ada"}
    token.refresh_from_db()
    assert (token.status, token.user, token.refresh_token) == ("disconnected", None, None)
    names = TokenEvent.objects.filter(token=token).values_list("name", flat=True)
    assert list(names.order_by("pk")) == ["signed_in", "disconnected", "unlinked"]
    # And whoever has the old account is a stranger now.
    assert signed_in(bipsync, ADA).user_id() != str(staff["ada"].pk)


def test_rights_go_with_the_account_that_gave_them(
    staff: dict[str, User], bipsync: SimulatedBipsync, settings: Any, tmp_path: Path
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "STAFF": {"name": ["Ada Lovelace"]}}
    Run(tmp_path, f"username,subject\nada,{ADA}\n")
    signed_in(bipsync, ADA)
    assert User.objects.get(username="ada").is_staff
    Run(tmp_path, f"username,subject\nada,{GRACE}\n", "--replace")
    assert not User.objects.get(username="ada").is_staff
    event = TokenEvent.objects.get(name="right_taken")
    assert (event.subject, event.detail) == (ADA, "the account is no longer theirs")


def test_a_dry_run_tells_nobody_of_what_does_not_happen(
    staff: dict[str, User], bipsync: SimulatedBipsync, tmp_path: Path
) -> None:
    token = connect(bipsync, user=staff["ada"])
    told: list[int] = []

    def note(token: BipsyncToken, **kwargs: object) -> None:
        told.append(token.pk)

    signals.disconnected.connect(note)
    try:
        text = f"username,subject\nada,{GRACE}\n"
        assert not Run(tmp_path, text, "--replace", "--dry-run").failed
        assert told == []
        token.refresh_from_db()
        assert (token.status, token.user) == ("active", staff["ada"])
        Run(tmp_path, text, "--replace")
        assert told == [token.pk]
    finally:
        signals.disconnected.disconnect(note)


def test_a_session_of_an_account_that_was_given_up_ends(
    staff: dict[str, User], bipsync: SimulatedBipsync, settings: Any, tmp_path: Path
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 0}
    Run(tmp_path, f"username,subject\nada,{ADA}\n")
    browser: Browser = signed_in(bipsync, ADA)
    Run(tmp_path, f"username,subject\nada,{GRACE}\n", "--replace")
    assert browser.get("/", secure=True).status_code == 302


def test_two_administrators_at_once_link_once(
    staff: dict[str, User], bipsync: SimulatedBipsync
) -> None:
    tenant = get_tenant()
    answers = at_once(2, lambda number: lifecycle.link(tenant, (ADA, GRACE)[number], staff["ada"]))
    assert sorted(type(answer).__name__ for answer in answers) == ["LinkRefused", "bool"]
    assert list(links().values()) == ["ada"]


def test_an_account_of_somebody_else_is_not_taken(
    staff: dict[str, User], bipsync: SimulatedBipsync
) -> None:
    connect(bipsync, user=staff["ada"])
    for replace in (False, True):
        with pytest.raises(LinkRefused, match="belongs to ada already"):
            lifecycle.link(get_tenant(), ADA, staff["grace"], replace=replace)

"""``manage.py bipsync_link --csv FILE``: join existing staff to their Bipsync accounts."""

import csv
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from ... import lifecycle
from ...conf import Tenant, get_tenant
from ...durable import database
from ...exceptions import BipsyncError, ConfigurationError
from ...oauth.claims import is_subject

_COLUMNS = {"username", "subject", "tenant"}
_MOST_ERRORS = 50


@dataclass(frozen=True)
class _Link:
    line: int
    tenant: Tenant
    subject: str
    user: AbstractBaseUser

    def __str__(self) -> str:
        return f"{self.user.get_username()} – {self.tenant.slug}/{self.subject}"


class _LineError(Exception):
    """What is wrong with one line."""


class _DryRun(Exception):
    """Everything worked, and nothing is to stay."""


class Command(BaseCommand):
    """Reads the whole file before it changes anything, and changes all of it or nothing."""

    help = (
        "Join users of this site to their Bipsync accounts, so that their first sign-in finds "
        "them. The CSV file has the columns username and subject (Bipsync's id of the person), "
        "and tenant where there are several."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--csv", required=True, metavar="FILE", help="the file, in UTF-8; - for standard input"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="say what would happen, and change nothing"
        )
        parser.add_argument(
            "--replace",
            action="store_true",
            help="let users who have another Bipsync account give it up",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Link, or say line by line what is wrong. Raises ``CommandError``."""
        errors: list[str] = []
        links = list(self._read(options["csv"], errors))
        try:
            with transaction.atomic(using=database()):
                for link in links:
                    self._carry_out(link, options, errors)
                if errors:
                    raise _LineError
                if options["dry_run"]:
                    raise _DryRun
        except _LineError:
            for error in errors[:_MOST_ERRORS]:
                self.stderr.write(self.style.ERROR(error))
            raise CommandError(
                f"{len(errors)} of the lines cannot be used, so nothing was changed."
            ) from None
        except _DryRun:
            self.stdout.write(f"Nothing was changed: {len(links)} lines could be carried out.")
            return
        self.stdout.write(self.style.SUCCESS(f"{len(links)} lines are carried out."))

    def _carry_out(self, link: _Link, options: dict[str, Any], errors: list[str]) -> None:
        try:
            # A savepoint: what one line did before it failed must not be seen by the next.
            with transaction.atomic(using=database()):
                is_new = lifecycle.link(
                    link.tenant, link.subject, link.user, replace=options["replace"]
                )
        except BipsyncError as error:
            errors.append(f"Line {link.line}: {error}")
            return
        done = "would be linked" if options["dry_run"] else "linked"
        verdict = done if is_new else "is linked already"
        self.stdout.write(f"Line {link.line}: {link}: {verdict}{_rights(link.user)}")

    def _read(self, name: str, errors: list[str]) -> Iterator[_Link]:
        seen: dict[tuple[str, str, object], int] = {}
        try:
            with _open(name) as file:
                rows = csv.DictReader(file, strict=True)
                _expect_columns(rows.fieldnames)
                for row in rows:
                    try:
                        link = _link(rows.line_num, row)
                        for key in (("subject", link.subject), ("user", link.user.pk)):
                            first = seen.setdefault((link.tenant.slug, *key), link.line)
                            if first != link.line:
                                raise _LineError(f"says the same or the contrary of line {first}.")
                        yield link
                    except (_LineError, BipsyncError) as error:
                        errors.append(f"Line {rows.line_num}: {error}")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise CommandError(f"{name} cannot be read as a CSV file in UTF-8: {error}") from error


@contextmanager
def _open(name: str) -> Iterator[TextIO]:
    if name == "-":
        yield sys.stdin
        return
    # Spreadsheets put a mark in front of UTF-8.
    with Path(name).open(encoding="utf-8-sig", newline="") as file:
        yield file


def _expect_columns(names: Any) -> None:
    found = set(names or ())
    if not {"username", "subject"} <= found or not found <= _COLUMNS:
        raise CommandError(
            "The first line names the columns: username, subject, and tenant where there are "
            f"several. It names: {', '.join(map(str, names or ())) or 'nothing'}."
        )


def _link(line: int, row: dict[str, str | None]) -> _Link:
    values = {name: (row.get(name) or "").strip() for name in _COLUMNS}
    if None in row:
        raise _LineError("has more values than there are columns.")
    try:
        tenant = get_tenant(values["tenant"] or None)
    except ConfigurationError as error:
        raise _LineError(str(error)) from error
    subject = values["subject"]
    if not is_subject(subject):
        raise _LineError("has no usable subject (Bipsync's id, such as 68b993fa85d14160d4030391).")
    model = get_user_model()
    users = model._default_manager.using(database())
    user = users.filter(**{model.USERNAME_FIELD: values["username"]}).first()
    # Some databases find names that are written in another way, too.
    if user is None or str(user.get_username()) != values["username"]:
        raise _LineError(f"there is no user {values['username']!r} here.")
    if not user.is_active:
        raise _LineError(f"the user {values['username']!r} is switched off.")
    return _Link(line, tenant, subject, user)


def _rights(user: Any) -> str:
    """Say who gets a way in that leads far."""
    if getattr(user, "is_superuser", False):
        return " (a superuser)"
    return " (staff)" if getattr(user, "is_staff", False) else ""

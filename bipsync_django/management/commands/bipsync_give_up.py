"""``manage.py bipsync_give_up TENANT``: end all that came into this site from a tenant."""

import sys
from argparse import ArgumentParser
from collections import Counter
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ... import errors, health, lifecycle
from ...exceptions import ConfigurationError
from ...lifecycle import RemovedTenant, TenantGivenUp
from .. import progress


class Command(BaseCommand):
    """Reports what it did, in counts, and what is left to do."""

    help = (
        "Gives a Bipsync tenant up: ends its connections and the sessions that began with them, "
        "takes back the flags and groups that its claims gave, and lets its accounts belong to "
        "nobody. Run it before the tenant is taken out of BIPSYNC, so that the refresh tokens can "
        "be put out of use at Bipsync, and once more afterwards. It may be interrupted and started "
        "again at any time. Exit status: 0 when nothing is left, 1 otherwise."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("tenant", metavar="TENANT", help="the slug of the tenant")
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="say what would be done; change nothing, and send nothing to Bipsync",
        )
        parser.add_argument(
            "--noinput",
            "--no-input",
            action="store_false",
            dest="interactive",
            help="do not ask for confirmation",
        )

    def handle(
        self, *args: Any, tenant: str, dry_run: bool, interactive: bool, **options: Any
    ) -> None:
        """Give the tenant up, and report. Raises ``CommandError`` when something is left."""
        try:
            before = lifecycle.remains_of(tenant)
            if interactive and not dry_run and not before.is_given_up:
                _confirm(before)
            done = lifecycle.give_up_tenant(
                tenant,
                dry_run=dry_run,
                watch=lambda done: progress.show(
                    self.stderr, done.accounts + done.failed, before.accounts
                ),
            )
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        if self.stderr.isatty() and before.accounts:
            self.stderr.write("")
        self._report(tenant, done)
        if dry_run:
            self.stdout.write("Nothing was changed, and nothing was sent.")
            return
        health.forget_report()
        if done.failed:
            raise CommandError(
                f"{done.failed} could not be given up: the log says which and why. "
                "Run this once more."
            )
        if done.waiting:
            raise CommandError(
                f"{done.waiting} connections wait to be ended. Leave the tenant "
                "in BIPSYNC, and run this once more in half a minute."
            )
        if done.left:
            raise CommandError(
                f"{done.left} accounts and flags are left, of people who have signed in meanwhile. "
                "Take the tenant out of BIPSYNC, restart the site, and run this once more."
            )

    def _report(self, tenant: str, done: TenantGivenUp) -> None:
        left_valid = sum(done.left_valid.values())
        lines = [
            f"{done.accounts} accounts",
            f"{done.ended} connections ended; of these, {done.spent} are put out of use at Bipsync "
            f"and {left_valid} stay valid there until they expire",
            f"sessions of {done.sessions} people ended",
            f"{sum(done.rights.values())} rights taken back{_named(done.rights)}",
        ]
        for line in lines:
            self.stdout.write(f"{tenant}: {line}.")
        if done.waiting:
            self.stdout.write(
                f"{tenant}: {done.waiting} connections are not ended yet: another process may be "
                "refreshing them, or was killed as it did."
            )
        for code, count in sorted(done.left_valid.items()):
            self.stdout.write(f"{tenant}: {count} stay valid: {errors.explain(code)}")


def _named(rights: Counter[str]) -> str:
    named = ", ".join(f"{name} {count}" for name, count in sorted(rights.items()))
    return f" ({named})" if named else ""


def _confirm(before: RemovedTenant) -> None:
    """Ask at the terminal. Raises ``CommandError`` without a terminal, or for another answer."""
    if not sys.stdin.isatty():
        raise CommandError("There is no terminal to ask at: say --no-input to go on all the same.")
    answer = input(
        f"This gives up {before.accounts} accounts of {before.tenant} and the rights that came "
        "with them, for good: their people have no way in by this tenant any more.\n"
        "Type the name of the tenant to go on: "
    )
    if answer.strip() != before.tenant:
        raise CommandError("Nothing was changed.")

"""``manage.py bipsync_deployment``: whose grants are in this database."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ... import lifecycle
from ...breaker import hand_over
from ...conf import get_settings
from ...durable import database
from ...models import BipsyncToken, TenantState


class Command(BaseCommand):
    help = (
        "Says which deployment the Bipsync grants in this database belong to. A database that was "
        "copied from another deployment must not be used as it is: every refresh here would end "
        "the grant there. Exit status: 1 when the grants are those of another deployment."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        choice = parser.add_mutually_exclusive_group()
        choice.add_argument(
            "--take-over",
            action="store_true",
            help="the other deployment is gone for good, and its grants are to be used here",
        )
        choice.add_argument(
            "--start-afresh",
            action="store_true",
            help="the other deployment goes on: erase its grants here; everybody signs in anew",
        )

    def handle(self, *args: Any, take_over: bool, start_afresh: bool, **options: Any) -> None:
        ours = get_settings().deployment
        if not ours:
            self.stdout.write("No DEPLOYMENT is set, so nothing holds a copy of this one back.")
        states = TenantState.objects.using(database())
        foreign = False
        for tenant in get_settings().tenants:
            theirs = states.filter(tenant=tenant).values_list("deployment", flat=True).first() or ""
            if start_afresh and theirs != ours:
                self._erase(tenant)
            if theirs == ours:
                self.stdout.write(f"{tenant}: the grants are those of this deployment ({ours!r}).")
            elif take_over or start_afresh:
                hand_over(tenant)
                self.stdout.write(f"{tenant}: now of this deployment ({ours!r}).")
            elif theirs:
                foreign = True
                self.stdout.write(f"{tenant}: of the deployment {theirs!r}.")
            else:
                self.stdout.write(
                    f"{tenant}: nobody's yet. The next sign-in or refresh here makes the grants "
                    f"those of {ours!r}. If this is a copy, say --start-afresh first."
                )
        if foreign:
            raise CommandError(
                f"This deployment is {ours!r} (BIPSYNC['DEPLOYMENT']), so nothing is sent to "
                "Bipsync. If the other one is gone for good, say --take-over; if it goes on, say "
                "--start-afresh."
            )

    def _erase(self, tenant: str) -> None:
        rows = BipsyncToken.objects.using(database()).filter(tenant=tenant)
        # A disconnected one may keep its refresh token until it is spent.
        left = rows.exclude(
            status=BipsyncToken.Status.DISCONNECTED, refresh_token__isnull=True
        ).defer("access_token", "refresh_token")
        erased = 0
        for row in left:
            lifecycle.disconnect(row, end_at_bipsync=False)
            erased += 1
        self.stdout.write(f"{tenant}: {erased} grants erased here; at Bipsync they go on.")

"""``manage.py bipsync_rotate_keys``: encrypt all stored tokens with the newest key."""

from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ... import lifecycle
from ...durable import database
from ...exceptions import SecretUnreadable
from ...models import BipsyncToken
from .. import progress

_BATCH = 500
_MOST_NAMED = 20


class Command(BaseCommand):
    """Looks at every row first, and changes none if there is one that it cannot read."""

    help = (
        "Encrypts every stored Bipsync token with the first key of FIELD_ENCRYPTION_KEY, while "
        "the site goes on. It may be interrupted and started again at any time. Exit status: 0 "
        "when nothing is left on an older key, 1 otherwise."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--dry-run", action="store_true", help="only say how many tokens are on an older key"
        )

    def handle(self, *args: Any, dry_run: bool, **options: Any) -> None:
        """Encrypt, verify, and say what is left. Raises ``CommandError``."""
        old, total = self._look()
        if dry_run:
            self.stdout.write(f"{len(old)} of {total} are on an older key.")
            return
        done = 0
        for place, pk in enumerate(old, start=1):
            done += lifecycle.reencrypt(BipsyncToken(pk=pk))
            progress.show(self.stdout, place, len(old))
        if self.stdout.isatty() and old:
            self.stdout.write("")
        left, total = self._look()
        self.stdout.write(
            f"{done} of {total} were encrypted anew, {len(left)} are left on an older key."
        )
        if left:
            raise CommandError(
                "Somebody still encrypts with an older key: restart all processes of the site with "
                "the new one in front, then run this once more. Keep the older key until then."
            )
        self.stdout.write("The older keys can be taken out of FIELD_ENCRYPTION_KEY.")

    def _look(self) -> tuple[list[int], int]:
        """Return the ids of the rows on an older key, and how many rows hold tokens."""
        old, unreadable, total = [], [], 0
        for token in _rows():
            total += 1
            try:
                if lifecycle.is_on_old_key(token):
                    old.append(token.pk)
            except SecretUnreadable:
                unreadable.append(f"{token.pk} ({token})")
        if unreadable:
            named = ", ".join(unreadable[:_MOST_NAMED])
            more = " and more" if len(unreadable) > _MOST_NAMED else ""
            raise CommandError(
                f"{len(unreadable)} of {total} cannot be decrypted, so nothing was changed: "
                f"{named}{more}. Put the key that encrypted them back into FIELD_ENCRYPTION_KEY. "
                "If it is lost, disconnect them (lifecycle.disconnect): their people sign in again."
            )
        return old, total


def _rows() -> Iterator[BipsyncToken]:
    """All rows with tokens, a batch at a time: no cursor stays open beside the writes."""
    last = 0
    rows = BipsyncToken.objects.using(database()).order_by("pk")
    while batch := list(rows.filter(pk__gt=last)[:_BATCH]):
        last = batch[-1].pk
        yield from (row for row in batch if row.access_token or row.refresh_token)

"""``manage.py bipsync_rotate_keys``: encrypt all stored tokens with the newest key."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ... import lifecycle
from ...lifecycle import KeySurvey
from .. import progress

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
        survey = self._look()
        old = survey.old
        if dry_run:
            self.stdout.write(f"{len(old)} of {survey.total} are on an older key.")
            return
        done = 0
        for place, row in enumerate(old, start=1):
            done += lifecycle.reencrypt(row)
            progress.show(self.stdout, place, len(old))
        if self.stdout.isatty() and old:
            self.stdout.write("")
        survey = self._look()
        self.stdout.write(
            f"{done} of {survey.total} were encrypted anew, {len(survey.old)} are left on an older "
            "key."
        )
        if survey.old:
            raise CommandError(
                "Somebody still encrypts with an older key: restart all processes of the site with "
                "the new one in front, then run this once more. Keep the older key until then."
            )
        self.stdout.write("The older keys can be taken out of FIELD_ENCRYPTION_KEY.")

    def _look(self) -> KeySurvey:
        survey = lifecycle.survey_keys()
        if survey.unreadable:
            named = ", ".join(survey.unreadable[:_MOST_NAMED])
            more = " and more" if len(survey.unreadable) > _MOST_NAMED else ""
            raise CommandError(
                f"{len(survey.unreadable)} of {survey.total} cannot be decrypted, so nothing was "
                f"changed: {named}{more}. Put the key that encrypted them back into "
                "FIELD_ENCRYPTION_KEY. If it is lost, disconnect them (lifecycle.disconnect): "
                "their people sign in again."
            )
        return survey

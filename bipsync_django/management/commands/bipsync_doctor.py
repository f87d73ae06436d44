"""``manage.py bipsync_doctor``: what is wrong, and what to do next."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ...doctor import Finding, Verdict, examine
from ...exceptions import ConfigurationError


class Command(BaseCommand):
    """Prints; the examinations are in ``bipsync_django.doctor``."""

    help = (
        "Examines settings, secrets, Bipsync's endpoints and keys, clocks, encryption, cache, "
        "Celery and all connections, and says what to do. Changes nothing, and shows no secret. "
        "Exit status: 0 without errors (warnings may be there), 1 with one."
    )
    # It is for sites whose settings are wrong, too.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
        parser.add_argument("--tenant", metavar="SLUG", help="look at this tenant alone")
        parser.add_argument(
            "--offline", action="store_true", help="ask neither Bipsync nor the broker"
        )

    def handle(
        self, *args: Any, as_json: bool, tenant: str | None, offline: bool, **options: Any
    ) -> None:
        """Examine and print. Raises ``CommandError`` when there is an error among the findings."""
        findings = []
        try:
            for finding in examine(tenant=tenant, offline=offline):
                findings.append(finding)
                if not as_json:
                    self._print(finding)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        count = Counter(str(finding.verdict) for finding in findings)
        if as_json:
            document = {
                "version": 1,
                "counts": {str(verdict): count[verdict] for verdict in Verdict},
                "findings": [asdict(finding) for finding in findings],
            }
            self.stdout.write(json.dumps(document, indent=2))
        else:
            figures = ", ".join(f"{count[verdict]} {verdict}" for verdict in Verdict)
            self.stdout.write(f"\n{figures}")
        if count[Verdict.ERROR]:
            raise CommandError(f"{count[Verdict.ERROR]} of these need somebody.")

    def _print(self, finding: Finding) -> None:
        styles = {
            Verdict.OK: self.style.SUCCESS,
            Verdict.WARNING: self.style.WARNING,
            Verdict.ERROR: self.style.ERROR,
            Verdict.SKIPPED: self.style.NOTICE,
        }
        place = f"{finding.tenant}: " if finding.tenant else ""
        verdict = styles[finding.verdict](f"{finding.verdict:<8}")
        self.stdout.write(f"{verdict} {place}{finding.check}: {finding.text}")
        if finding.next_step:
            self.stdout.write(f"{'':<8} → {finding.next_step}")

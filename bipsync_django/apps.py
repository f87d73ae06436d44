"""The app."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class BipsyncConfig(AppConfig):
    name = "bipsync_django"
    verbose_name = _("Bipsync")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # Checks, receivers and the budget register themselves.
        from . import backends, checks, deploy_checks, key_budget, redaction  # noqa: F401

        redaction.install()

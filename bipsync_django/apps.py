"""The app."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class BipsyncConfig(AppConfig):
    name = "bipsync_django"
    verbose_name = _("Bipsync")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks, redaction  # noqa: F401 - checks register themselves

        redaction.install()

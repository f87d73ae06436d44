"""The rows. Token rows are written by ``lifecycle`` alone."""

from datetime import datetime

from django.conf import settings
from django.db import models
from django.db.models import Value
from django.db.models.functions import Concat, StrIndex
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .fields import Sealed, SealedField, seal
from .redaction import without_traces

__all__ = [
    "BipsyncToken",
    "BipsyncTokenQuerySet",
    "GivenFlag",
    "HourlyCount",
    "SpentState",
    "TenantState",
    "TokenEvent",
]


class BipsyncTokenQuerySet(models.QuerySet["BipsyncToken"]):
    """Token rows by what one wants of them."""

    def active(self) -> "BipsyncTokenQuerySet":
        """Grants in use. Those of inactive people are neither used nor refreshed."""
        return self.filter(
            models.Q(kind=BipsyncToken.Kind.SERVICE) | _user_is_active(),
            status=BipsyncToken.Status.ACTIVE,
        )

    def due(self, now: datetime) -> "BipsyncTokenQuerySet":
        """Grants whose refresh is due at ``now`` (an aware datetime), the longest due first."""
        return self.active().filter(next_refresh_at__lte=now).order_by("next_refresh_at")

    def failing(self) -> "BipsyncTokenQuerySet":
        """Grants in use whose last refresh failed."""
        return self.active().filter(attempt__gt=0)

    def overdue(self, late: datetime) -> "BipsyncTokenQuerySet":
        """Grants in use whose refresh was due before ``late`` (aware), and has not been put off."""
        is_put_off = models.Q(next_attempt_at__gt=late)
        return self.active().filter(~is_put_off, next_refresh_at__lt=late)

    def for_user(self, user: models.Model) -> "BipsyncTokenQuerySet":
        """The grants of one person, one for each tenant."""
        return self.filter(kind=BipsyncToken.Kind.PERSON, user_id=user.pk)

    def with_scopes(self, *scopes: str) -> "BipsyncTokenQuerySet":
        """Grants that have all of ``scopes``."""
        padded = Concat(Value(" "), "scopes", Value(" "), output_field=models.TextField())
        found = self.alias(_scopes=padded)
        for scope in scopes:
            # MySQL's INSTR follows the collation and SQLite's LIKE ignores case: ask both ways.
            found = found.alias(_at=StrIndex("_scopes", Value(f" {scope} "))).filter(
                _at__gt=0, _scopes__contains=f" {scope} "
            )
        return found


def _user_is_active() -> models.Q:
    from django.contrib.auth import get_user_model

    fields = {field.name for field in get_user_model()._meta.get_fields()}
    # A custom user model may have is_active as a plain attribute.
    return models.Q(user__is_active=True) if "is_active" in fields else models.Q(user__isnull=False)


class BipsyncToken(models.Model):
    """One grant: what a person, or a service account, allowed this site at one tenant."""

    class Kind(models.TextChoices):
        PERSON = "person", _("person")
        SERVICE = "service", _("service account")

    class Status(models.TextChoices):
        ACTIVE = "active", _("active")
        NEEDS_SIGN_IN = "needs_sign_in", _("needs sign-in")
        UNCONFIRMED = "unconfirmed", _("waits for confirmation")
        DISCONNECTED = "disconnected", _("disconnected")

    tenant = models.CharField(_("tenant"), max_length=63)
    kind = models.CharField(_("kind"), max_length=16, choices=Kind, default=Kind.PERSON)
    subject = models.CharField(_("subject"), max_length=255)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("person"),
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="bipsync_tokens",
    )
    client_id = models.CharField(_("client id"), max_length=255)
    access_token = SealedField(null=True)
    refresh_token = SealedField(null=True)
    scopes = models.TextField(_("scopes"), blank=True, default="")
    # False while Bipsync has not said which scopes were granted: then they are those asked for.
    scopes_are_known = models.BooleanField(default=True)
    status = models.CharField(_("status"), max_length=16, choices=Status, default=Status.ACTIVE)
    claims = models.JSONField(_("claims"), default=dict, blank=True)

    created_at = models.DateTimeField(_("first connected"), default=timezone.now)
    signed_in_at = models.DateTimeField(_("last sign-in"), null=True)
    obtained_at = models.DateTimeField(_("last refresh"), null=True)
    access_expires_at = models.DateTimeField(_("expires"), null=True)

    generation = models.PositiveBigIntegerField(default=0)
    validated_generation = models.PositiveBigIntegerField(default=0)
    lease_id = models.CharField(max_length=32, null=True)  # noqa: DJ001 - NULL means "no lease"
    lease_until = models.DateTimeField(null=True)
    attempt = models.PositiveIntegerField(_("failures"), default=0)
    in_doubt_at = models.DateTimeField(null=True)
    next_attempt_at = models.DateTimeField(null=True)
    next_refresh_at = models.DateTimeField(_("next refresh"), null=True)
    last_error = models.CharField(_("last error"), max_length=64, blank=True, default="")
    sessions_valid_after = models.DateTimeField(null=True)

    objects = BipsyncTokenQuerySet.as_manager()

    class Meta:
        verbose_name = _("Bipsync token")
        verbose_name_plural = _("Bipsync tokens")
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "kind", "subject"], name="bipsync_token_identity"
            ),
            # NULLs are told apart: service accounts and connections without a person may be many.
            models.UniqueConstraint(fields=["tenant", "user"], name="bipsync_token_person"),
            models.CheckConstraint(
                condition=models.Q(kind="person") | models.Q(kind="service", user__isnull=True),
                name="bipsync_token_service_has_no_user",
            ),
        ]
        indexes = [
            models.Index(fields=["status", "next_refresh_at"], name="bipsync_token_due"),
            # What the panel counts, without looking at a row.
            models.Index(
                fields=["tenant", "status", "access_expires_at"], name="bipsync_token_figures"
            ),
            models.Index(fields=["attempt"], name="bipsync_token_failing"),
        ]
        permissions = [
            ("refresh_bipsynctoken", "Can refresh a Bipsync token"),
            ("retry_bipsynctoken", "Can try an ended Bipsync token again"),
            ("disconnect_bipsynctoken", "Can disconnect a person from Bipsync"),
            ("end_sessions_bipsynctoken", "Can end the sessions of a Bipsync token"),
            ("connect_service_bipsynctoken", "Can connect a Bipsync service account"),
        ]

    def __str__(self) -> str:
        return f"{self.tenant}/{self.subject}"

    @property
    def owner(self) -> str:
        """Who this is, for people to read: the user, or what a service account is called."""
        if self.user is not None:
            return str(self.user)
        return str(self.claims.get("name") or self.claims.get("email") or self.subject)

    @property
    def scope_set(self) -> frozenset[str]:
        """The granted scopes."""
        return frozenset(self.scopes.split())

    @without_traces
    def seal(self, column: str, value: str) -> Sealed:
        """Encrypt ``value`` so that it opens in this row's ``column`` only."""
        return seal(value, *self._place(column))

    @without_traces
    def unseal(self, column: str) -> str | None:
        """Return the secret in ``column``, or ``None``. Raises ``SecretUnreadable``."""
        sealed: Sealed | None = getattr(self, column)
        return None if sealed is None else sealed.unseal(*self._place(column))

    def _place(self, column: str) -> tuple[str, str, str, str]:
        return (self.tenant, self.kind, self.subject, column)


class TenantState(models.Model):
    """What all processes have to know of a tenant."""

    tenant = models.CharField(_("tenant"), max_length=63, primary_key=True)
    breaker_until = models.DateTimeField(_("calls held back until"), null=True)
    configuration_error = models.CharField(
        _("configuration error"), max_length=64, blank=True, default=""
    )
    dead_in_a_row = models.PositiveIntegerField(default=0)
    failed_in_a_row = models.PositiveIntegerField(default=0)
    # When each of the two budgets for fetching signing keys was last used.
    keys_asked_at = models.DateTimeField(null=True)
    keys_asked_by_sign_in_at = models.DateTimeField(null=True)
    deployment = models.CharField(max_length=255, blank=True, default="")

    class Meta:
        verbose_name = _("tenant state")
        verbose_name_plural = _("tenant states")

    def __str__(self) -> str:
        return self.tenant


class TokenEvent(models.Model):
    """A change or a failure in the life of a grant; nothing secret. Successes are counted only."""

    class Name(models.TextChoices):
        SIGNED_IN = "signed_in", _("signed in")
        CONNECTED = "connected", _("connected by the person")
        LINKED = "linked", _("linked to a user")
        MATCHED = "matched", _("joined to an existing user by a rule")
        UNLINKED = "unlinked", _("no longer linked to a user")
        RIGHT_GIVEN = "right_given", _("right given")
        RIGHT_TAKEN = "right_taken", _("right taken back")
        AUTHORISED = "authorised", _("service account authorised")
        CONFIRMED = "confirmed", _("service account confirmed")
        REFRESH_ASKED = "refresh_asked", _("refresh asked for")
        NOT_REFRESHED = "not_refreshed", _("not refreshed")
        REFRESH_FAILED = "refresh_failed", _("refresh failed")
        NEEDS_SIGN_IN = "needs_sign_in", _("needs sign-in")
        DISCONNECTED = "disconnected", _("disconnected")
        LEFT_VALID = "left_valid", _("the last tokens stay valid at Bipsync until they expire")
        REVIVED = "revived", _("works again")
        DISCARDED = "discarded", _("a late answer was not needed")
        QUARANTINED = "quarantined", _("token held back")
        SESSIONS_ENDED = "sessions_ended", _("sessions ended")
        BREAKER_OPENED = "breaker_opened", _("calls held back")
        BREAKER_CLOSED = "breaker_closed", _("calls go on")

    token = models.ForeignKey(
        BipsyncToken, on_delete=models.SET_NULL, null=True, related_name="events"
    )
    tenant = models.CharField(_("tenant"), max_length=63)
    subject = models.CharField(_("subject"), max_length=255, blank=True, default="")
    name = models.CharField(_("event"), max_length=32, choices=Name)
    reason = models.CharField(_("reason"), max_length=64, blank=True, default="")
    detail = models.CharField(_("detail"), max_length=255, blank=True, default="")
    generation = models.PositiveBigIntegerField(null=True)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    at = models.DateTimeField(_("time"), default=timezone.now)

    class Meta:
        verbose_name = _("token event")
        verbose_name_plural = _("token events")
        indexes = [
            models.Index(fields=["token", "at"], name="bipsync_event_token"),
            models.Index(fields=["at"], name="bipsync_event_at"),
        ]

    def __str__(self) -> str:
        return f"{self.tenant}/{self.subject}: {self.name}"


class GivenFlag(models.Model):
    """A flag of a user that a tenant's claims have given, and that they may take back.

    A flag that a person ticked has no row here, and no claim takes it away.
    """

    class Name(models.TextChoices):
        STAFF = "is_staff", _("staff")
        SUPERUSER = "is_superuser", _("superuser")

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="bipsync_flags"
    )
    tenant = models.CharField(_("tenant"), max_length=63)
    name = models.CharField(_("flag"), max_length=32, choices=Name)
    given_at = models.DateTimeField(_("given"), default=timezone.now)

    class Meta:
        verbose_name = _("flag given by claims")
        verbose_name_plural = _("flags given by claims")
        constraints = [
            models.UniqueConstraint(fields=["user", "tenant", "name"], name="bipsync_given_flag")
        ]

    def __str__(self) -> str:
        return f"{self.user_id}: {self.name} ({self.tenant})"


class HourlyCount(models.Model):
    """How often something happened in a tenant within an hour (UTC), in several parts to add up.

    Everybody counts, and one row would be a lock for which everybody queues.
    """

    tenant = models.CharField(max_length=63)
    hour = models.DateTimeField()
    name = models.CharField(max_length=32)
    part = models.PositiveSmallIntegerField(default=0)
    count = models.PositiveBigIntegerField(default=0)

    class Meta:
        verbose_name = _("hourly count")
        verbose_name_plural = _("hourly counts")
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "hour", "name", "part"], name="bipsync_hourly_count"
            )
        ]

    def __str__(self) -> str:
        return f"{self.tenant} {self.hour:%Y-%m-%d %H:00} {self.name}: {self.count}"


class SpentState(models.Model):
    """A trip through the browser that has come back; its state is good once."""

    digest = models.CharField(max_length=64, primary_key=True)
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        verbose_name = _("spent state")
        verbose_name_plural = _("spent states")

    def __str__(self) -> str:
        return self.digest[:8]

"""Celery tasks. There are no results, and messages carry ids: both are readable in brokers.

Beside the id of a row goes a keyed digest of whose row it is: a worker that sees the tables of
another customer leaves the row alone that has the same id there. So does one that is given no
digest.
"""

from celery import shared_task

from . import events, flow, lifecycle

__all__ = ["prune", "refresh_asked", "refresh_due_tokens", "refresh_many", "refresh_token"]

_BATCH = 500


@shared_task(ignore_result=True, soft_time_limit=240, time_limit=300)
def refresh_due_tokens() -> None:
    """Hand every row that is due to a worker; spend what a disconnect had to leave unspent.

    Run it once a minute (``schedule.BEAT_SCHEDULE``).
    """
    while taken := lifecycle.take_due(_BATCH):
        for message in taken.items():
            # One that comes later than that is for a row that has been taken again.
            refresh_token.apply_async(message, expires=lifecycle.TAKEN_FOR.total_seconds())
    lifecycle.spend_abandoned()


# The limits leave time for one call and for a database that comes back late; between Bipsync's
# answer and the commit the soft one is put off (durable.hold_signals).
@shared_task(
    ignore_result=True,
    acks_late=True,
    reject_on_worker_lost=True,
    soft_time_limit=90,
    time_limit=120,
)
def refresh_token(pk: int, digest: str = "") -> None:
    """Refresh one row if it is still due. Running it twice, or late, is harmless."""
    lifecycle.refresh_if_due(pk, digest)


@shared_task(ignore_result=True, soft_time_limit=240, time_limit=300)
def refresh_many(batch: str) -> None:
    """Hand the rows of a batch to workers: those for which an event says that it was asked for."""
    for event in events.asked_for(batch).select_related("token"):
        if event.token is not None:
            message = (event.token.pk, lifecycle.Identity.of(event.token).digest)
            refresh_asked.apply_async(message, expires=lifecycle.TAKEN_FOR.total_seconds())


@shared_task(
    ignore_result=True,
    acks_late=True,
    reject_on_worker_lost=True,
    soft_time_limit=90,
    time_limit=120,
)
def refresh_asked(pk: int, digest: str = "") -> None:
    """Refresh one row because an administrator has asked for it. Running it twice is harmless."""
    lifecycle.refresh_asked(pk, digest)


@shared_task(ignore_result=True, soft_time_limit=240, time_limit=300)
def prune() -> None:
    """Delete spent sign-ins, and events and counts older than ``KEEP_EVENTS``. Run it hourly."""
    flow.prune()
    events.prune()
    lifecycle.prune_unconfirmed()

"""A bar that says how far a command is."""

from django.core.management.base import OutputWrapper

__all__ = ["show"]

_WIDTH = 30


def show(out: OutputWrapper, done: int, total: int) -> None:
    """Show that ``done`` of ``total`` is done, if a person is looking: not in a log or a pipe."""
    if not out.isatty():
        return
    total = max(total, done)
    filled = _WIDTH * done // max(total, 1)
    bar = "#" * filled + "." * (_WIDTH - filled)
    # In no colour, not even on the stream that shows errors in red.
    out.write(f"\r[{bar}] {done}/{total}", str, ending="")
    out.flush()

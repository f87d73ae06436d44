"""``make demo``: the portal, a simulated Bipsync and a worker, on this machine and without servers.

``make demo ARGS=--check`` walks through it without a person.
"""

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bipsync_django.testing.people import DEFAULT_USERS

from . import journey
from .demonstration import DemoFailed, Demonstration, Interrupted
from .local import data_folder
from .processes import free_port

__all__ = ["main"]


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sample_project.demo",
        description="Run the sample staff portal against a simulated Bipsync, until Ctrl-C.",
    )
    parser.add_argument("--port", type=_port, help="of the portal (default: 8000)")
    parser.add_argument(
        "--bipsync-port", type=_port, help="of the simulated Bipsync (default: 8010)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="what outlives a run (default: .demo)"
    )
    parser.add_argument(
        "--token-lifetime",
        type=int,
        metavar="SECONDS",
        help="of access tokens (default: 180; at Bipsync it is 3600)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="walk through it without a person, on data and ports of its own, and exit 0 if all"
        " is well",
    )
    return parser.parse_args(argv)


def _port(value: str) -> int:
    port = int(value)
    if not 0 < port < 65536:
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return port


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration or its check; return the exit status."""
    options = _options(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a name's letters is no reason to stop.
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        return _check(options) if options.check else _run(options)
    except DemoFailed as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read this has gone; Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(options: argparse.Namespace) -> int:
    demonstration = Demonstration(
        data=(options.data or data_folder()).absolute(),
        port=options.port or 8000,
        bipsync_port=options.bipsync_port or 8010,
        token_lifetime=options.token_lifetime or 180,
        beat_seconds=5,
        on_event=_print_event,
    )
    with demonstration:
        try:
            password = demonstration.prepare()
            print("Starting…")
            demonstration.start()
            _print_welcome(demonstration, password)
            demonstration.run()
        except Interrupted:
            print("\nStopping…")
    print("Everything has stopped. What was done is kept for the next time.")
    return 0


def _check(options: argparse.Namespace) -> int:
    data = (options.data or Path(tempfile.mkdtemp(prefix="bipsync-demo-"))).absolute()
    events: list[str] = []
    demonstration = Demonstration(
        data=data,
        port=options.port or free_port(),
        bipsync_port=options.bipsync_port or free_port(),
        # Nothing is refreshed within 30 seconds: a shorter life would only end before that.
        token_lifetime=options.token_lifetime or 40,
        beat_seconds=2,
        on_event=lambda at, source, sentence: events.append(f"{at}  {source:<8}{sentence}"),
    )
    started = time.monotonic()
    try:
        with demonstration:
            journey.walk(demonstration)
    except (DemoFailed, Interrupted) as error:
        if isinstance(error, Interrupted):
            print("\nInterrupted.")
            status = 130
        else:
            print(f"\n{error}\n\nWhat happened:", *events or ["(nothing)"], sep="\n")
            status = 1
        print(f"Data and logs are kept in {data}")
        return status
    print(f"\nAll is well, after {time.monotonic() - started:.0f} seconds.")
    if options.data is None:
        shutil.rmtree(data, ignore_errors=True)
    return 0


def _print_welcome(demonstration: Demonstration, password: str) -> None:
    rows = [
        ("Portal", f"{demonstration.url}/", ""),
        ("Its admin", f"{demonstration.url}/admin/", f"user admin, password {password}"),
        ("Bipsync", f"{demonstration.bipsync_url}/", "simulated, on this machine only"),
        ("Data, logs", _short(demonstration.data), ""),
    ]
    width = max(len(address) for _, address, _ in rows)
    print("\nThe staff portal of Acme Capital is open.\n")
    for title, address, remark in rows:
        print(f"  {title:<12}{address:<{width}}  {remark}".rstrip())
    print("\nWho can sign in (Bipsync's page lets you choose; no password is asked)\n")
    for user in DEFAULT_USERS:
        print(f"  {user.name:<22}{user.email}")
    print(
        f"\nAccess tokens live {demonstration.token_lifetime} seconds here instead of an hour;"
        " the worker renews them in time.\nPress Ctrl-C to stop. What happens from now on:\n"
    )


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _print_event(at: str, source: str, sentence: str) -> None:
    print(f"  {at}  {source:<9}{sentence}")


if __name__ == "__main__":
    sys.exit(main())

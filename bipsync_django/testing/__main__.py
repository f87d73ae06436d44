"""``python -m bipsync_django.testing``: a simulated Bipsync to develop a site against."""

import argparse
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence

from .simulator import SimulatedBipsync
from .tls import Authority


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bipsync_django.testing",
        description="Run a simulated Bipsync until it is interrupted. Never expose it to a network:"
        " whoever reaches it signs in as anybody.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8010, help="port to listen on, 0 for any")
    parser.add_argument(
        "--redirect-uri",
        action="append",
        default=[],
        metavar="URI",
        help="where the site takes callbacks, to the letter; may be repeated",
    )
    parser.add_argument("--client", default="acme", help="slug of the tenant")
    parser.add_argument("--client-id", default="portal")
    parser.add_argument("--client-secret", default="portal-secret")
    parser.add_argument(
        "--access-token-lifetime", type=int, default=3600, metavar="SECONDS", help="default: 3600"
    )
    parser.add_argument("--dialect", choices=("9", "8"), default="9", help="how errors are worded")
    parser.add_argument(
        "--state", metavar="FILE", help="keep grants and signing keys here between runs"
    )
    parser.add_argument(
        "--tls",
        metavar="FILE",
        help="speak https, and write the certificate to trust (CA_BUNDLE) to this file",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing about tokens")
    return parser.parse_args(argv)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM; return the exit status."""
    options = _arguments(argv)
    interrupted = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: interrupted.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        return _run(options, interrupted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(options: argparse.Namespace, interrupted: threading.Event) -> int:
    try:
        tls = _authority(options.tls) if options.tls else None
    except (OSError, ImportError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    try:
        simulated = SimulatedBipsync(
            client=options.client,
            client_id=options.client_id,
            client_secret=options.client_secret,
            redirect_uris=options.redirect_uri,
            host=options.host,
            port=options.port,
            access_token_lifetime=options.access_token_lifetime,
            dialect=options.dialect,
            state_file=options.state,
            tls=tls,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"Cannot go on from {options.state}: {error!r}\n")
        return 1
    if not options.quiet:
        simulated.on_event = lambda event: _print(f"{time.strftime('%H:%M:%S')} {event}")
    try:
        simulated.start()
    except OSError as error:
        sys.stderr.write(f"Cannot listen on {options.host}:{options.port}: {error.strerror}\n")
        return 1
    with simulated:
        _print(f"Simulated Bipsync for {options.client} at {simulated.url} (Ctrl+C stops it)")
        interrupted.wait()
    return 0


def _authority(file: str) -> Authority:
    authority = Authority()
    shutil.copy(authority.bundle, file)
    return authority


if __name__ == "__main__":
    sys.exit(main())

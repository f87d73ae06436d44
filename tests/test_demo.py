"""The demonstration as people run it: a process of its own, on real ports, ended by signals."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import requests

from bipsync_django.testing.browser import decide
from bipsync_django.testing.people import DEFAULT_USERS

ROOT = Path(__file__).resolve().parent.parent
OPEN = "What happens from now on"
ADA = DEFAULT_USERS[0]


class Demo:
    """A running ``python -m sample_project.demo``, and every process that it has started."""

    def __init__(self, *arguments: str, temporary: Path) -> None:
        self.output = ""
        self._seen: set[int] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sample_project.demo", *arguments],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            # As a terminal does: Ctrl-C goes to a group of its own.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=10)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.output += line

    def wait_for(self, text: str, *, seconds: float) -> None:
        wait_until(lambda: text in self.output or self._process.poll() is not None, seconds)
        assert text in self.output, self.output

    def processes(self) -> dict[int, str]:
        """Return the command lines of all processes under this one, by pid."""
        rows = [line.split(None, 3) for line in _ps("pid=,ppid=,stat=,args=")]
        family = {self._process.pid}
        for _ in range(4):
            family |= {int(row[0]) for row in rows if int(row[1]) in family}
        found = {int(row[0]): row[3] for row in rows if int(row[0]) in family}
        del found[self._process.pid]
        self._seen |= set(found)
        return found

    def left_behind(self) -> set[int]:
        """Return which of the processes seen so far are alive still."""
        rows = [line.split() for line in _ps("pid=,stat=")]
        return self._seen & {int(pid) for pid, stat in rows if not stat.startswith("Z")}

    def send(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def exit_status(self, *, seconds: float) -> int:
        status = self._process.wait(timeout=seconds)
        self._reader.join(timeout=10)
        return status


def _ps(columns: str) -> list[str]:
    ps = subprocess.run(
        ["ps", "-A", "-ww", "-o", columns], capture_output=True, text=True, check=True
    )
    return ps.stdout.splitlines()


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.1)
    return False


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    port, bipsync_port = free_ports()
    return [f"--port={port}", f"--bipsync-port={bipsync_port}", f"--data={tmp_path / 'data'}"]


@pytest.fixture
def browser() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def url_of(arguments: list[str]) -> str:
    return f"http://127.0.0.1:{arguments[0].partition('=')[2]}"


def sign_in(browser: requests.Session, portal: str) -> None:
    leaving = browser.get(f"{portal}/bipsync/login/", allow_redirects=False, timeout=20)
    callback = decide(leaving.headers["Location"], decision="approve", user_id=ADA.id)
    home = browser.get(callback, timeout=20)
    assert f"Good to see you, {ADA.given_name}" in home.text


def test_the_check_walks_the_whole_journey_and_cleans_up(tmp_path: Path) -> None:
    with Demo("--check", temporary=tmp_path) as demo:
        status = demo.exit_status(seconds=115)
        assert status == 0, demo.output
        assert demo.output.count("ok  ") == 12
        assert "the worker refreshes them" in demo.output
        assert list(tmp_path.iterdir()) == []


def test_a_failed_check_names_its_step_and_keeps_the_data(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        with Demo("--check", f"--bipsync-port={port}", temporary=tmp_path) as demo:
            assert demo.exit_status(seconds=30) == 1
    assert "FAILED  everything has started" in demo.output
    assert f"Port {port} cannot be used" in demo.output
    (kept,) = tmp_path.iterdir()
    assert f"Data and logs are kept in {kept}" in demo.output
    assert "Traceback" not in demo.output


@pytest.mark.parametrize("position", [0, 1], ids=["portal", "Bipsync"])
def test_a_port_in_use_is_named_together_with_its_option(
    arguments: list[str], position: int, tmp_path: Path
) -> None:
    option, _, port = arguments[position].partition("=")
    with (
        socket.create_server(("127.0.0.1", int(port))),
        Demo(*arguments, temporary=tmp_path) as demo,
    ):
        assert demo.exit_status(seconds=30) == 1
    assert f"Port {port} cannot be used: another program is using it." in demo.output
    assert f'make demo ARGS="{option} ' in demo.output
    assert "Traceback" not in demo.output


def test_a_second_run_goes_on_where_ctrl_c_ended_the_first(
    arguments: list[str], browser: requests.Session, tmp_path: Path
) -> None:
    arguments = [*arguments, "--token-lifetime=40"]
    portal = url_of(arguments)
    with Demo(*arguments, temporary=tmp_path) as first:
        first.wait_for(OPEN, seconds=60)
        sign_in(browser, portal)
        first.wait_for(f"{ADA.name} signed in with Bipsync.", seconds=10)
        # The simulated Bipsync, the portal, the worker and its beat.
        assert len(first.processes()) == 4
        first.send(signal.SIGINT)
        assert first.exit_status(seconds=20) == 0
        assert first.left_behind() == set()
        assert "Traceback" not in first.output

    with Demo(*arguments, temporary=tmp_path) as second:
        second.wait_for(OPEN, seconds=60)
        home = browser.get(f"{portal}/", timeout=20)
        assert f"Good to see you, {ADA.given_name}" in home.text
        second.wait_for(f"worker   {ADA.name}'s connection was renewed.", seconds=75)
        assert "Northwind Traders" in browser.get(f"{portal}/research/", timeout=20).text
        second.processes()
        second.send(signal.SIGTERM)
        assert second.exit_status(seconds=20) == 0
        assert second.left_behind() == set()
    assert _password(first.output) == _password(second.output)
    secret = (tmp_path / "data" / "client-secret").read_text()
    assert secret not in first.output + second.output
    for name in ("client-secret", "secret-key", "field-encryption-key", "admin-password"):
        assert (tmp_path / "data" / name).stat().st_mode & 0o077 == 0


def _password(output: str) -> str:
    return output.partition("user admin, password ")[2].split()[0]


def test_a_process_that_dies_is_named_and_ends_the_rest(
    arguments: list[str], tmp_path: Path
) -> None:
    with Demo(*arguments, temporary=tmp_path) as demo:
        demo.wait_for(OPEN, seconds=60)
        (portal,) = (pid for pid, line in demo.processes().items() if "runserver" in line)
        os.kill(portal, signal.SIGKILL)
        assert demo.exit_status(seconds=20) == 1
        assert "The portal has ended by itself (SIGKILL)." in demo.output
        assert "development server" in demo.output
        assert demo.left_behind() == set()
        assert "Traceback" not in demo.output


def test_nothing_outlives_a_demonstration_that_is_killed(
    arguments: list[str], tmp_path: Path
) -> None:
    with Demo(*arguments, temporary=tmp_path) as demo:
        demo.wait_for(OPEN, seconds=60)
        assert len(demo.processes()) == 4
        demo.send(signal.SIGKILL)
        demo.exit_status(seconds=5)
        assert wait_until(lambda: not demo.left_behind(), 20), demo.left_behind()

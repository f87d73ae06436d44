"""Each benchmark at a tiny size, so that it still works when somebody wants its figures."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import databases

ROOT = Path(__file__).parent.parent


def available() -> list[str]:
    return ["sqlite", *databases.servers()]


def run(name: str, *arguments: str, on: list[str], seconds: float = 60) -> list[list[str]]:
    """Run a benchmark and return its table rows, as cells."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    for database in on:
        command += ["--database", database]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BENCH_")}
    benchmark = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT
    )
    try:
        output, _ = benchmark.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # Not SIGKILL: it has to stop what it started.
        benchmark.send_signal(signal.SIGTERM)
        try:
            output, _ = benchmark.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            benchmark.kill()
            output, _ = benchmark.communicate()
        pytest.fail(f"{name} took more than {seconds} s:\n{output}")
    assert benchmark.returncode == 0, output
    header, rows = output.rsplit("----\n", 1)
    assert header.strip()
    return [line.split() for line in rows.splitlines() if line and not line.startswith(" ")]


def one_database() -> list[str]:
    """A server where there is one: it is what a site has."""
    return available()[1:2] or ["sqlite"]


def test_race() -> None:
    rows = run("race", "--rounds", "1", on=one_database())
    assert len(rows) == 8
    for *_, served, calls, one_call, alive in rows:
        assert served in {"8/8", "4/4"}
        assert (calls, one_call, alive) == ("1", "1/1", "1/1")


def test_panel() -> None:
    rows = run("panel", "--tokens", "200", "--events", "400", on=one_database())
    assert len(rows) == 4
    for *_, few, many in rows:
        assert few == f"{many},"


def test_rollback() -> None:
    rows = {name: rest for name, *rest in run("rollback", "--views", "2", on=available())}
    assert set(rows) == set(available())
    assert rows.pop("sqlite") == ["2", "0", "2", "0", "2/2", "2/2"]
    for row in rows.values():
        assert row == ["2", "2", "0", "2", "2/2", "2/2"]


def test_outage() -> None:
    options = ("--tokens", "12", "--outage", "60", "--faster", "100", "--patience", "2000")
    rows = run("outage", *options, on=one_database())
    assert len(rows) == 4
    for row in rows:
        *_, calls, ended, recovery, unit, _, _, left = row
        assert int(calls) < 40
        assert (ended, unit, left) == ("0", "s", "0")
        assert float(recovery) < 20


def test_sweep() -> None:
    rows = run("sweep", "--rows", "2000", "--due", "600", "--inactive", "600", on=available())
    assert len(rows) == 2 * len(available())
    for row in rows:
        assert row[-10] == "600"
        assert {row[-4].lower(), row[-3].lower()} <= {"yes", "no"}


def test_throughput() -> None:
    options = ("--workers", "2", "--seconds", "0.5", "--broker", "filesystem")
    (row,) = run("throughput", *options, on=one_database())
    assert row[-1] == "20/20"


def test_kill() -> None:
    options = ("--tokens", "20", "--every", "2", "--limit", "6", "--broker", "filesystem")
    (row,) = run("kill", *options, on=one_database())
    lost, in_the_window, unexplained = (int(row[place]) for place in (-7, -6, -2))
    assert lost == in_the_window
    assert unexplained == 0


def test_forgery() -> None:
    tokens = 2 * 19
    *kinds, forged, good = run("forgery", str(tokens), "--processes", "2", on=[])
    assert len(kinds) == 19
    assert forged[:5] == ["all", "forged", str(tokens), "0", "0"]
    assert good[:4] == ["good", "19", "19", "0"]

"""Apply the mutants one by one to a copy of the tree, and run the test that each has to break."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from tests.mutants import ROOT, Mutant, NotApplicable, find_test, load

_NOT_COPIED = shutil.ignore_patterns(
    ".*cache", ".git", ".venv", ".tox", ".demo", ".hypothesis", "__pycache__", "_build", "*.pyc"
)
_SECONDS = 900.0
_OF_CUSTOMERS = "tests/customers/"
# As tests/test_customers.py runs them.
_FOR_CUSTOMERS = [{}, {"TEST_WITHOUT_HOOK": "1"}]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Return 0 when all chosen mutants were killed, 1 when one was not, 2 when none is chosen."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument(
        "words",
        nargs="*",
        help="only mutants whose line, description, file or test has one of these words",
    )
    parser.add_argument("--list", action="store_true", help="show them and run nothing")
    parser.add_argument("-x", "--exitfirst", action="store_true", help="stop at the first survivor")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in load(root) if _is_chosen(mutant, options.words)]
    if not chosen:
        print("No mutant has one of these words. --list shows all.", file=sys.stderr)
        return 2
    if options.list:
        for mutant in chosen:
            print(f"{mutant.line}\n    {mutant.says}\n    {mutant.file}, {mutant.test}")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        copy = Path(place) / "tree"
        shutil.copytree(root, copy, ignore=_NOT_COPIED)
        return _run_all(chosen, copy, stop=options.exitfirst)


def _run_all(mutants: list[Mutant], copy: Path, *, stop: bool) -> int:
    sound = _sound_tests(mutants, copy)
    verdicts: dict[str, int] = {}
    for mutant in mutants:
        started = time.monotonic()
        verdict, why = _verdict(mutant, copy, sound)
        verdicts[verdict] = verdicts.get(verdict, 0) + 1
        print(f"{verdict:14} {time.monotonic() - started:4.0f} s  {mutant.line}: {mutant.says}")
        if verdict != "killed":
            print(f"{'':22}{why}")
        sys.stdout.flush()
        if stop and verdict != "killed":
            break
    print(", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
    return 0 if set(verdicts) == {"killed"} else 1


def _sound_tests(mutants: list[Mutant], copy: Path) -> set[str]:
    """Return the names of the tests that pass as long as nothing is taken out."""
    places = set()
    for mutant in mutants:
        try:
            places.add(find_test(mutant.test, copy))
        except NotApplicable:
            continue  # told with the mutant
    if not places:
        return set()
    print(f"Running {len(places)} tests as they are …", flush=True)
    passed, failed = _run_tests(sorted(places), copy, seconds=_SECONDS * 4)
    return passed - failed


def _verdict(mutant: Mutant, copy: Path, sound: set[str]) -> tuple[str, str]:
    """Return what became of the mutant, and a sentence about it."""
    try:
        mutated, place = mutant.apply(copy), find_test(mutant.test, copy)
    except NotApplicable as error:
        return "does not apply", str(error)
    if mutant.test not in sound:
        return "does not run", f"{place} does not pass as it is."
    path = copy / mutant.file
    before = path.read_bytes()
    path.write_text(mutated, encoding="utf-8")
    try:
        passed, failed = _run_tests([place], copy, "-x", seconds=_SECONDS)
    except subprocess.TimeoutExpired:
        return "does not run", f"{place} does not end."
    finally:
        path.write_bytes(before)
    if mutant.test in failed:
        return "killed", ""
    if mutant.test in passed:
        return "survived", f"{place} passes without the defence in {mutant.file}."
    return "does not run", f"{place} neither passes nor fails: the mutant breaks more than it says."


def _run_tests(
    places: Sequence[str], copy: Path, *options: str, seconds: float
) -> tuple[set[str], set[str]]:
    """Run the tests in the copy; return the names of those that passed, and that failed.

    A test whose fixtures raise an error is neither, and so is one that is skipped.
    """
    of_customers = [place for place in places if place.startswith(_OF_CUSTOMERS)]
    usual = [place for place in places if place not in of_customers]
    runs = [_pytest([*usual, *options], copy, {}, seconds=seconds)] if usual else []
    if of_customers:
        arguments = ["--ds=tests.customers.settings", *of_customers, *options]
        runs += [_pytest(arguments, copy, more, seconds=seconds) for more in _FOR_CUSTOMERS]
    passed = {name for run in runs for name in run[0]}
    failed = {name for run in runs for name in run[1]}
    return passed, failed


def _pytest(
    arguments: Sequence[str], copy: Path, more: Mapping[str, str], *, seconds: float
) -> tuple[set[str], set[str]]:
    report, told = copy / "mutants.xml", copy / "mutants.log"
    report.unlink(missing_ok=True)
    path = os.pathsep.join([str(copy), *filter(None, [os.environ.get("PYTHONPATH")])])
    # A file and no pipe, which a worker that a test has left behind would keep open.
    with told.open("wb") as log:
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments],
            cwd=copy,
            # Two mutants of one file may have the same size and second, by which bytecode is known.
            env={**os.environ, **more, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path},
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=seconds,
        )
    passed: set[str] = set()
    failed: set[str] = set()
    if not report.exists() and b" Timeout +" in told.read_bytes():
        # pytest-timeout ends the whole process with the test that takes too long.
        failed = {argument.rpartition("::")[2] for argument in arguments}
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest's own
            name = case.get("name", "").partition("[")[0]
            kinds = {child.tag for child in case}
            if "failure" in kinds:
                failed.add(name)
            elif not kinds & {"error", "skipped"}:
                passed.add(name)
    return passed, failed


def _is_chosen(mutant: Mutant, words: list[str]) -> bool:
    text = " ".join((mutant.line, mutant.says, mutant.file, mutant.test)).lower()
    return not words or any(word.lower() in text for word in words)


if __name__ == "__main__":
    sys.exit(main())

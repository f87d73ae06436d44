"""Each line of ``docs/security.md`` names a test; here is the proof that it is the right one.

A mutant takes one defence out of the code: a file, a text that occurs in it exactly once, and
what to put in its place. The test that the line names has to fail then. The mutants are in the
TOML files beside this module, one file for each part of the page, under the line that they are
about::

    [["2.1 CSRF protection."]]
    says = "Any state is accepted."
    file = "bipsync_django/flow.py"
    find = '''
        if not _STATE.fullmatch(state):
    '''
    put = '''
        if False:
    '''

A line is called by its first cell, or by its first two where the first is a section's number.
``test`` names another test than the line's. A line for which no mutant is possible says why::

    ["3.3 Validate every operation."]
    none = "The reason."

``make mutants`` applies them one by one to a copy of the tree and runs the one test of each
(``python -m tests.mutants --help`` tells more). ``tests/test_mutants.py`` sees to it, in each
run of the tests, that every mutant still applies and that every line has one.

Why no library: mutmut, cosmic-ray and mutatest make mutants by themselves, by rules for operators
and constants, and count how many of them the whole test suite kills. None of them takes a mutant
that somebody has thought of, and none asks whether one particular test kills it; most defences
here (an attribute of a cookie, a filter of a query, a call that is left out) are not what their
rules change.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Line", "Mutant", "NotApplicable", "find_test", "lines", "load", "reasons"]

ROOT = Path(__file__).parents[2]
_REASONS = {"none needed", "none possible", "none of ours"}
_KEYS = {"says", "file", "find", "put", "test"}


class NotApplicable(Exception):
    """The mutant is about something that is not there any more. The text says what to do."""


@dataclass(frozen=True)
class Line:
    """One line of a table of the security page, and the test that it names, if any."""

    name: str
    test: str | None


@dataclass(frozen=True)
class Mutant:
    """One defence taken out: ``find`` in ``file`` becomes ``put``, and ``test`` has to fail."""

    line: str
    says: str
    file: str
    find: str
    put: str
    test: str

    def apply(self, root: Path) -> str:
        """Return the text of the mutant's file with the defence taken out.

        Raises ``NotApplicable`` when the text is not there exactly once, or the rest is no Python.
        """
        path = root / self.file
        source = path.read_text(encoding="utf-8") if path.is_file() else ""
        times = source.count(self.find)
        if times != 1:
            raise NotApplicable(
                f"{self.file} has the text of the mutant {self.says!r} ({self.line}) {times} "
                "times, and should have it once. Look where the defence is now, and write that."
            )
        mutated = source.replace(self.find, self.put)
        if path.suffix == ".py":
            try:
                ast.parse(mutated)
            except SyntaxError as error:
                raise NotApplicable(
                    f"The mutant {self.says!r} ({self.line}) is no Python: {error}"
                ) from error
        return mutated


def lines(page: str) -> list[Line]:
    """Return the lines of all tables of ``page``, the text of ``docs/security.md``."""
    found = []
    has_sections = False
    for row in re.findall(r"(?m)^\|(.*)\|$", page):
        cells = [cell.strip() for cell in row.split("|")]
        if cells[-1] == "Test":
            has_sections = cells[0] == "Section"
        elif not set(row) <= set("|- "):
            named = re.fullmatch(r"`(test_\w+)`", cells[-1])
            if named is None and cells[-1] not in _REASONS:
                raise ValueError(f"The line {cells} of the security page names no test.")
            name = " ".join(cells[: 2 if has_sections else 1])
            found.append(Line(name, named[1] if named else None))
    return found


def load(root: Path = ROOT) -> list[Mutant]:
    """Return all mutants, in the order of the files and of what is in them.

    Raises ``ValueError`` for one that is not complete, or that no line and no test belongs to.
    """
    tests = {line.name: line.test for line in lines((root / "docs/security.md").read_text())}
    return [
        _mutant(name, entry, tests.get(name))
        for name, entry in _entries(root)
        if "none" not in entry
    ]


def reasons(root: Path = ROOT) -> dict[str, str]:
    """Return the lines for which no mutant is possible, and why."""
    return {name: entry["none"] for name, entry in _entries(root) if "none" in entry}


def find_test(name: str, root: Path = ROOT) -> str:
    """Return where pytest finds the test called ``name``, as ``tests/test_x.py::name``.

    Those about customers' schemas are in ``tests/customers``, which has settings of its own.

    Raises ``NotApplicable`` when there is none, or more than one.
    """
    pattern = re.compile(rf"(?m)^(?:class (\w+)|(    )?def {name}\b)")
    found = []
    paths = [
        *sorted((root / "tests").glob("test_*.py")),
        *(root / "tests/customers").glob("cases.py"),
    ]
    for path in paths:
        inside = ""
        for match in pattern.finditer(path.read_text(encoding="utf-8")):
            if match[1]:
                inside = f"{match[1]}::"
            else:
                place = path.relative_to(root).as_posix()
                found.append(f"{place}::{inside if match[2] else ''}{name}")
    if len(found) != 1:
        raise NotApplicable(f"There are {len(found)} tests called {name}, and should be one.")
    return found[0]


def _entries(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((root / "tests/mutants").glob("*.toml")):
        for name, entries in tomllib.loads(path.read_text(encoding="utf-8")).items():
            for entry in entries if isinstance(entries, list) else [entries]:
                yield name, entry


def _mutant(line: str, entry: dict[str, Any], named: str | None) -> Mutant:
    test = entry.get("test", named)
    if test is None:
        raise ValueError(
            f"No line of docs/security.md is called {line!r}, or it names no test. Call the mutant "
            "by the line as it is now, or give it a test of its own."
        )
    if missing := _KEYS - {"test"} - set(entry):
        raise ValueError(f"A mutant of {line!r} lacks {', '.join(sorted(missing))}.")
    if unknown := set(entry) - _KEYS:
        raise ValueError(f"A mutant of {line!r} has {', '.join(sorted(unknown))}, which is no key.")
    # The quotes stand on lines of their own.
    find, put = (entry[key].removeprefix("\n").removesuffix("\n") for key in ("find", "put"))
    if find == put:
        raise ValueError(f"The mutant {entry['says']!r} of {line!r} changes nothing.")
    return Mutant(line, entry["says"], entry["file"], find, put, test)

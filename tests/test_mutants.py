"""Every line of the security page has a mutant, every mutant applies, and the command tells."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import mutants
from tests.mutants import NotApplicable, __main__, find_test, lines, load, reasons

ROOT = Path(__file__).parent.parent
PAGE = lines((ROOT / "docs/security.md").read_text())


def test_every_mutant_applies_and_its_test_is_there() -> None:
    found = load()
    assert len(found) > 100
    wrong = []
    for mutant in found:
        try:
            mutant.apply(ROOT)
            find_test(mutant.test)
        except NotApplicable as error:
            wrong.append(str(error))
    assert wrong == []


def test_every_line_of_the_security_page_has_a_mutant_or_a_reason() -> None:
    names = [line.name for line in PAGE]
    assert len(set(names)) == len(names), "two lines with one name"
    proved = {mutant.line for mutant in load()}
    excused = reasons()
    without = [line.name for line in PAGE if line.test and line.name not in proved | set(excused)]
    assert without == [], "add a mutant to tests/mutants, or say there why none is possible"
    assert [name for name in excused if name not in names] == [], "no such line"
    assert all(len(reason) > 20 for reason in excused.values())


def test_every_line_has_a_mutant_that_breaks_the_very_test_that_it_names() -> None:
    broken = {(mutant.line, mutant.test) for mutant in load()}
    named = {(line.name, line.test) for line in PAGE if line.test and line.name not in reasons()}
    assert named - broken == set()


# --- the command, on a small tree of its own

SITE = """
def is_allowed(name):
    return name == "ada"
"""
TESTS = """
from site_code import is_allowed

def test_only_ada_is_allowed():
    assert is_allowed("ada")
    assert not is_allowed("grace")

def test_ada_is_allowed():
    assert is_allowed("ada")
"""
SECURITY = """
| What could go wrong | What we do | Test |
|---|---|---|
| Grace comes in. | We look. | `test_only_ada_is_allowed` |
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # It needs none of the plugins, which take longer than the tests.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for folder in ("docs", "tests/mutants"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "site_code.py").write_text(SITE)
    (tmp_path / "tests/test_site.py").write_text(TESTS)
    (tmp_path / "docs/security.md").write_text(SECURITY)
    return tmp_path


def write(tree: Path, **changes: str) -> None:
    entry = {
        "says": "Everybody is allowed.",
        "file": "site_code.py",
        "find": 'return name == "ada"',
        "put": "return True",
        **changes,
    }
    line = entry.pop("line", "Grace comes in.")
    # What JSON calls a string, TOML does too.
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in entry.items())
    (tree / "tests/mutants/all.toml").write_text(f'[["{line}"]]\n{text}\n')


@pytest.mark.parametrize(
    ("changes", "verdict", "status"),
    [
        ({}, "1 killed", 0),
        ({"test": "test_ada_is_allowed"}, "1 survived", 1),
        ({"find": "return name is None"}, "1 does not apply", 1),
        ({"find": "name"}, "1 does not apply", 1),
        ({"put": "return ("}, "1 does not apply", 1),
        ({"test": "test_that_is_not_there"}, "1 does not apply", 1),
        ({"put": "return True\n\nimport nothing_of_that_name"}, "1 does not run", 1),
    ],
    ids=["killed", "survived", "gone", "twice", "no Python", "no test", "breaks all"],
)
def test_the_command_says_what_became_of_a_mutant(
    tree: Path, capfd: Any, changes: dict[str, str], verdict: str, status: int
) -> None:
    write(tree, **changes)
    assert __main__.main([], tree) == status
    assert capfd.readouterr().out.splitlines()[-1] == verdict
    assert (tree / "site_code.py").read_text() == SITE, "the tree itself is left alone"


def test_a_test_that_the_time_limit_ends_has_failed(tree: Path, capfd: Any) -> None:
    limit = "addopts = '-p pytest_timeout'\ntimeout = 5\ntimeout_method = 'thread'\n"
    (tree / "pyproject.toml").write_text(f"[tool.pytest.ini_options]\n{limit}")
    write(tree, put='return __import__("time").sleep(60)')
    assert __main__.main([], tree) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "1 killed"


def test_a_test_that_fails_anyway_proves_nothing(tree: Path, capfd: Any) -> None:
    write(tree)
    (tree / "tests/test_site.py").write_text(TESTS.replace('not is_allowed("grace")', "False"))
    assert __main__.main([], tree) == 1
    assert "does not pass as it is" in capfd.readouterr().out


def test_mutants_are_chosen_by_words(tree: Path, capfd: Any) -> None:
    write(tree)
    assert __main__.main(["--list", "GRACE"], tree) == 0
    assert "Everybody is allowed." in capfd.readouterr().out
    assert __main__.main(["nobody's"], tree) == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"line": "Ada comes in."}, "No line of docs/security.md is called 'Ada comes in.'"),
        ({"put": 'return name == "ada"'}, "changes nothing"),
        ({"where": "here"}, "has where, which is no key"),
    ],
)
def test_a_mutant_that_is_not_right_says_so(tree: Path, changes: dict[str, str], told: str) -> None:
    write(tree, **changes)
    with pytest.raises(ValueError, match=told):
        mutants.load(tree)


def test_those_about_customers_run_with_and_without_the_sites_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[list[str], dict[str, str]]] = []

    def run(
        arguments: list[str], copy: Path, more: dict[str, str], *, seconds: float
    ) -> tuple[set[str], set[str]]:
        runs.append((arguments, more))
        return {"test_a"}, {"test_b"} if more else set()

    monkeypatch.setattr(__main__, "_pytest", run)
    places = ["tests/test_x.py::test_a", "tests/customers/cases.py::test_b"]
    assert __main__._run_tests(places, tmp_path, "-x", seconds=1) == ({"test_a"}, {"test_b"})
    own = ["--ds=tests.customers.settings", places[1], "-x"]
    assert runs == [([places[0], "-x"], {}), (own, {}), (own, {"TEST_WITHOUT_HOOK": "1"})]

"""A site with a schema for each of its customers, by django-tenants, in a process of its own."""

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests import databases

HERE = Path(__file__).parent


@pytest.mark.timeout(600)
@pytest.mark.parametrize("hook", ["with PREPARE_CONNECTION", "without it"])
def test_a_schema_for_each_customer(hook: str) -> None:
    databases.servers()
    if "postgresql" in databases.MISSING:
        reason = f"postgresql cannot be used here ({databases.MISSING['postgresql']})"
        if databases.IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    environment = {name: value for name, value in os.environ.items() if "COV" not in name}
    if hook == "without it":
        environment["TEST_WITHOUT_HOOK"] = "1"
    run = subprocess.run(
        [
            sys.executable,
            *["-m", "pytest", "-q", "-p", "no:cacheprovider"],
            "--ds=tests.customers.settings",
            str(HERE / "customers" / "cases.py"),
        ],
        cwd=HERE.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def _functions(source: str) -> dict[str, str]:
    """Return the functions of a module by name, without annotations and docstrings."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
            node.returns = None
            if ast.get_docstring(node) is not None:
                del node.body[0]
            found[node.name] = ast.unparse(node)
    return found


def test_the_documentation_shows_what_is_tried_here() -> None:
    page = (HERE.parent / "docs" / "installing.md").read_text()
    section = page.partition("## A schema for each customer")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?s)```python\n(.*?)```", section)
    shown: dict[str, str] = {}
    for block in blocks:
        shown |= _functions(textwrap.dedent(block))
    tried: dict[str, str] = {}
    for name in ("schemas.py", "celery_app.py"):
        tried |= _functions((HERE / "customers" / name).read_text())
    assert shown == tried
    assert len(tried) == 5

"""A site with a schema for each of its customers, by django-tenants, in a process of its own."""

import os
import subprocess
import sys
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

"""Sites with packages beside ours that change whose session it is, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_one_person_acts_as_another_by_django_hijack() -> None:
    environment = {name: value for name, value in os.environ.items() if "COV" not in name}
    run = subprocess.run(
        [
            sys.executable,
            *["-m", "pytest", "-q", "-p", "no:cacheprovider"],
            "--ds=tests.hijacked.settings",
            str(HERE / "hijacked" / "cases.py"),
        ],
        cwd=HERE.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout

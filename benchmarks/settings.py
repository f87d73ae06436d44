"""Django settings of the benchmarks: those of the tests, on databases that belong to one run."""

import os
import tempfile
from pathlib import Path

from tests.databases import Router
from tests.settings import *  # noqa: F403
from tests.settings import DATABASES

# The processes that a benchmark starts find its databases by this.
RUN = os.environ.setdefault("BENCH_RUN", str(os.getpid()))
Router.alias = os.environ.get("BENCH_ALIAS", "default")

for alias, database in DATABASES.items():
    name = f"bipsync_bench_{RUN}"
    if alias == "default":
        name = str(Path(tempfile.gettempdir()) / f"{name}.sqlite3")
        journal = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
        database["OPTIONS"] = {**database["OPTIONS"], "init_command": journal}
    database["NAME"] = name
    database["TEST"] = {**database["TEST"], "NAME": name}

"""``python -m sample_project.child MODULE ARGUMENTS…``: run MODULE while the demonstration lives.

The demonstration holds the other end of this process's standard input. When that closes without
a word, it was killed, and nobody is left who could stop what it had started.
"""

import os
import runpy
import signal
import sys
import threading
import time

_PATIENCE = 5


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    # The whole process group: the demonstration gave this process one of its own.
    os.killpg(0, signal.SIGTERM)
    time.sleep(_PATIENCE)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Run the module named on the command line as if by ``python -m``."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

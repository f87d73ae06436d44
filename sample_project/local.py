"""What the portal keeps on this machine: a private folder, and secrets made on first use."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["ROOT", "data_folder", "folder", "secret_file"]

ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    """Return where everything is kept: PORTAL_DATA, or ``.demo`` beside ``manage.py``."""
    return Path(os.environ.get("PORTAL_DATA") or ROOT / ".demo").absolute()


def folder(name: str = "") -> Path:
    """Return the folder ``name`` inside the data folder, made if need be, for its owner only."""
    data_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    inside = data_folder() / name
    inside.mkdir(mode=0o700, exist_ok=True)
    return inside


def secret_file(name: str, make: Callable[[], str]) -> Path:
    """Return the file that keeps the secret ``name``, filled by ``make`` if it is not there.

    It can be read by its owner only (mode 0600). Processes that start at the same moment agree on
    one secret.
    """
    path = folder() / name
    if not path.exists():
        descriptor, temporary = tempfile.mkstemp(dir=folder())
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(make())
            # Unlike a rename, a link never replaces what another process was quicker to make.
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(temporary)
    return path

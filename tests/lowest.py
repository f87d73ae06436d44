"""Print the constraints of ``make lowest``: the lowest versions that pyproject.toml allows.

The floors are taken as they are written there. Packages that only these bring along are left to
pip, because a pin may be too new for a floor. Everything else has the version of constraints.txt.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def declared() -> list[Requirement]:
    """Return what a site may install: the dependencies, and those of the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in sum(extras, project["dependencies"])]


def floors() -> dict[str, str]:
    """Return the lowest version of each package that is allowed, by canonical name."""
    found: dict[str, str] = {}
    for requirement in declared():
        specifier = re.fullmatch(r">=([^,]+)", str(requirement.specifier))
        assert specifier, f"{requirement} has no floor, or more than one"
        name = canonicalize_name(requirement.name)
        assert found.setdefault(name, specifier[1]) == specifier[1], f"two floors of {name}"
    return found


def brought_along(requirements: Iterable[Requirement]) -> set[str]:
    """Return the names of all packages that these need, as they are installed here."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [*requirements]
    while todo:
        requirement = todo.pop()
        one = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if one not in seen:
            seen.add(one)
            todo += _needs(requirement)
    return {name for name, _ in seen}


def _needs(requirement: Requirement) -> Iterator[Requirement]:
    try:
        lines = metadata.requires(requirement.name) or []
    except metadata.PackageNotFoundError:
        return
    for needed in map(Requirement, lines):
        marker = needed.marker
        if marker is None or any(
            marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
        ):
            yield needed


def constraints() -> list[str]:
    """Return the lines of a constraints file for pip."""
    lowest = floors()
    free = brought_along(declared())
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    others = [line for line in pins if canonicalize_name(line.partition("==")[0]) not in free]
    return [*(f"{name}=={version}" for name, version in lowest.items()), *others]


if __name__ == "__main__":
    print("\n".join(constraints()))

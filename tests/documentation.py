"""The documentation's pages, and the examples in them."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"


def text(page: str) -> str:
    return (DOCS / page).read_text()


def blocks(page: str) -> list[str]:
    """The Python code blocks of a page."""
    return re.findall(r"(?ms)^```python\n(.*?)^```$", text(page))


def block(page: str, marker: str) -> str:
    """The one Python code block of a page that holds ``marker``."""
    (found,) = [code for code in blocks(page) if marker in code]
    return found


def run(code: str, **names: Any) -> dict[str, Any]:
    """Run an example and return its names."""
    exec(compile(code, "<example>", "exec"), names)  # noqa: S102 - our own documentation
    return names

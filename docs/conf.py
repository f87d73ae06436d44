"""Sphinx: the pages of this folder as HTML. ``make docs`` builds them; warnings are errors."""

from importlib.metadata import version as version_of

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

project = "bipsync-django"
author = "The bipsync-django maintainers"
copyright = author  # noqa: A001 - the name that Sphinx wants
release = version = version_of("bipsync-django")

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_sourcelink = False

# Links between pages name headings, as they do on GitHub.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]


def setup(app: Sphinx) -> None:
    """Let Mermaid stand as text: GitHub draws its diagrams, and Pygments does not know it."""
    app.add_lexer("mermaid", TextLexer)

"""How Sphinx builds the documentation: of what is installed, without the network."""

from importlib.metadata import version as installed_version
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring

project = "celery-statekit"
author = "The celery-statekit authors"
copyright = "2026, the celery-statekit authors"
release = version = installed_version("celery-statekit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "celery-statekit"

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

#: What napoleon takes for a type, up to the first colon, where it stands for a value.
VALUES = ("attribute", "data", "property")


def setup(app: Sphinx) -> None:
    """Have diagrams shown as text, and docstrings of values read as those of functions are."""
    # To draw them, a browser would have to load a script.
    app.add_lexer("mermaid", TextLexer)
    written: dict[str, list[str]] = {}

    def keep(_: Sphinx, what: str, name: str, *rest: Any) -> None:
        if what in VALUES:
            written[name] = list(rest[-1])

    def read(app: Sphinx, _: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        if name in written:
            text = GoogleDocstring(
                written.pop(name), app.config, app, "function", name, obj, options
            )
            lines[:] = text.lines()

    app.connect("autodoc-process-docstring", keep, priority=400)
    app.connect("autodoc-process-docstring", read, priority=600)

"""How Sphinx builds the documentation."""

from importlib.metadata import version as installed_version

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
autodoc_class_signature = "separated"

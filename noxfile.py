"""The matrix: every supported Python and Celery, with the built wheel.

The Pythons are read from the classifiers in pyproject.toml, so that the two cannot drift apart.
"""

from __future__ import annotations

import os
from typing import Final

import nox

PYTHONS: Final = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))
CELERY_IN_FULL: Final = ("5.7", "5.6")
CELERY_SMOKE: Final = "5.5"

nox.options.error_on_missing_interpreters = os.environ.get("CI") == "true"
nox.options.reuse_existing_virtualenvs = True


@nox.session(python=PYTHONS)
@nox.parametrize("celery", CELERY_IN_FULL)
def tests(session: nox.Session, celery: str) -> None:
    """Run every test."""
    if celery == "5.6" and session.python == "3.14":
        session.skip("Celery 5.6 does not support Python 3.14")
    session.install(".[test]", f"celery~={celery}.0")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=PYTHONS[0])
def smoke(session: nox.Session) -> None:
    """Run the demo and the README's examples on the oldest Python and Celery."""
    session.install(".[test]", f"celery~={CELERY_SMOKE}.0")
    session.run("python", "-m", "celery_statekit.demo")
    session.run("python", "-m", "pytest", "README.md")


@nox.session(python=PYTHONS[0])
def core(session: nox.Session) -> None:
    """Run the demo with nothing but what the library itself asks for."""
    session.install(".")
    session.run("python", "-m", "celery_statekit.demo")

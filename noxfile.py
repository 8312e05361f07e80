"""The matrix: the built wheel on every supported Python and Celery, newest and lowest versions.

No session sees the source tree. ``build`` makes the wheel from the sdist, and the tests run in
what the sdist holds beside the package: there is no ``src`` that could be imported.

Pythons, extras and lowest versions are read from pyproject.toml, so that they cannot drift apart.
``STATEKIT_MATRIX=short`` shortens ``tests/matrix``.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import nox

PROJECT: Final[dict[str, Any]] = nox.project.load_toml("pyproject.toml")["project"]
OPTIONAL: Final[dict[str, list[str]]] = PROJECT["optional-dependencies"]
PYTHONS: Final = nox.project.python_versions({"project": PROJECT})
#: The extras of who works on the library; all others are for its users.
DEVELOPERS: Final = {"bench", "dev", "docs", "lint", "matrix", "neighbours", "test"}
EXTRAS: Final = tuple(name for name in OPTIONAL if name not in DEVELOPERS)

CELERY_IN_FULL: Final = ("5.7", "5.6")
CELERY_SMOKE: Final = "5.5"
#: Which Python is too new for which Celery.
TOO_NEW: Final = {("3.14", "5.6"), ("3.14", "5.5")}

EVERYTHING: Final = ("tests", "README.md", "docs")
#: Where the session says no other words for pytest.
PARALLEL: Final = ("-n", "2", "--dist", "loadfile")
#: What needs no server, takes a minute, and meets every layer.
SMOKE: Final = (
    "README.md",
    "tests/demo",
    "tests/stores/test_contract.py",
    "tests/unit",
    "tests/worker/test_adoption.py",
    "tests/worker/test_old_idioms.py",
    "tests/worker/test_states.py",
)

BUILT: Final = Path(".nox", "built").absolute()
#: Where the tests run: what the sdist holds, without ``src``.
STAGE: Final = BUILT / "stage"

# Before pyenv's stand-ins, which are found for any Python and run those that are switched on.
_PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
os.environ["PATH"] = os.pathsep.join(
    [*map(str, sorted(_PYENV.glob("versions/3.*/bin"))), os.environ["PATH"]]
)
#: The oldest supported Python of this machine: at least the one that runs nox is there.
OLDEST: Final = next((v for v in PYTHONS if shutil.which(f"python{v}")), sys.executable)

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ("tests", "smoke", "lowest", "extras")
nox.options.error_on_missing_interpreters = os.environ.get("CI") == "true"
nox.options.reuse_existing_virtualenvs = True


@nox.session(python=False)
def build(session: nox.Session) -> None:
    """Build sdist and wheel, and lay out what the tests need beside the wheel."""
    shutil.rmtree(BUILT, ignore_errors=True)
    # The wheel is made of the sdist, as whoever packages the library for others makes it.
    session.run(sys.executable, "-m", "build", "--outdir", str(BUILT), silent=True)
    (sdist,) = BUILT.glob("*.tar.gz")
    shutil.unpack_archive(sdist, BUILT)
    (BUILT / sdist.name.removesuffix(".tar.gz")).rename(STAGE)
    shutil.rmtree(STAGE / "src")


@nox.session(python=PYTHONS, requires=["build"])
@nox.parametrize("celery", CELERY_IN_FULL)
def tests(session: nox.Session, celery: str) -> None:
    """Run every test."""
    refuse_what_is_too_new(session, celery)
    install(session, ["test"], f"celery~={celery}.0")
    run_pytest(session, EVERYTHING)


@nox.session(python=PYTHONS, requires=["build"])
def smoke(session: nox.Session) -> None:
    """Run the quick tests with the oldest series of Celery."""
    refuse_what_is_too_new(session, CELERY_SMOKE)
    install(session, ["test"], f"celery~={CELERY_SMOKE}.0")
    run_pytest(session, SMOKE)


@nox.session(python=OLDEST, requires=["build"])
@nox.parametrize("celery", [nox.param(CELERY_SMOKE, tags=["ci"]), "5.6"])
def lowest(session: nox.Session, celery: str) -> None:
    """Run the tests with the lowest version of everything that a user may have installed."""
    say_which_python_stands_in(session)
    install(session, EXTRAS, f"celery=={celery}.0", *lowest_versions())
    install(session, ["test"])  # leaves as it is what is there already
    run_pytest(session, SMOKE if celery == CELERY_SMOKE else EVERYTHING)


@nox.session(python=OLDEST, requires=["build"])
@nox.parametrize("extra", [nox.param("", tags=["ci"]), *EXTRAS])
def extras(session: nox.Session, extra: str) -> None:
    """Run what is said of each extra where that one alone is installed, or none."""
    say_which_python_stands_in(session)
    install(session, [extra], "pytest", "pytest-timeout")
    stage(session)
    # Without conftest.py, which needs an extra itself.
    words = ("--noconftest", *session.posargs)
    session.run("python", "-m", "pytest", "-c", "pyproject.toml", "tests/extras", *words)


def install(session: nox.Session, extras: Iterable[str], *requirements: str) -> None:
    """Install the wheel with ``extras``, and ``requirements``."""
    (path,) = BUILT.glob("*.whl")
    wheel = f"celery-statekit[{','.join(filter(None, extras))}] @ {path.as_uri()}"
    session.install(wheel, *requirements)
    # Where the virtualenv is of an earlier run, a wheel of the same version is not looked at.
    session.install("--force-reinstall", "--no-deps", str(path))


def lowest_versions() -> list[str]:
    """The lowest version of what the library and its users' extras require, but for Celery."""
    required = {*PROJECT["dependencies"], *(name for extra in EXTRAS for name in OPTIONAL[extra])}
    return sorted(name.replace(">=", "==") for name in required if not name.startswith("celery"))


def refuse_what_is_too_new(session: nox.Session, celery: str) -> None:
    """Skip the session where this Celery does not support this Python."""
    if (session.python, celery) in TOO_NEW:
        session.skip(f"Celery {celery} does not support Python {session.python}")


def say_which_python_stands_in(session: nox.Session) -> None:
    """Say so where the oldest supported Python is missing."""
    if session.python != PYTHONS[0]:
        session.warn(f"Python {PYTHONS[0]} is not on this machine: {session.python} stands in")


def run_pytest(session: nox.Session, tests: Iterable[str]) -> None:
    """Run ``tests``, and the examples in the docstrings of the installed package."""
    package = stage(session)
    words = session.posargs or PARALLEL
    session.run("python", "-m", "pytest", "-c", "pyproject.toml", *tests, package, *words)


def stage(session: nox.Session) -> str:
    """Go to where the tests are; return where the installed package is."""
    session.chdir(STAGE)
    where = "import celery_statekit, pathlib; print(pathlib.Path(celery_statekit.__file__).parent)"
    package = str(session.run("python", "-c", where, silent=True)).strip()
    if not Path(package).is_relative_to(session.virtualenv.location):
        session.error(f"not the wheel is tested but {package}")
    return package

"""Each extra where it is installed and where it is not: what then works, and what then is said.

What is installed is hidden from a process of its own. These tests need pytest alone, so that they
also run where an extra is really missing: ``pytest --noconftest tests/extras`` (noxfile.py).
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from celery_statekit.stores import open_store

#: Every package that only an extra installs.
PACKAGES: Final = (
    "django", "fastapi", "flask", "psycopg", "pymysql", "redis", "rich", "sqlalchemy", "starlette",
)  # fmt: skip
#: What a store needs, by its URL: the packages, and the extra that installs them all.
STORES: Final = {
    "redis://localhost/0": (("redis",), "redis"),
    "rediss://localhost/0": (("redis",), "redis"),
    "sentinel://localhost:26379/0?master_name=one": (("redis",), "redis"),
    "postgresql://localhost/shop": (("sqlalchemy", "psycopg"), "postgresql"),
    "db+postgresql+psycopg://localhost/shop": (("sqlalchemy", "psycopg"), "postgresql"),
    "mysql://localhost/shop": (("sqlalchemy", "pymysql"), "mysql"),
    "mariadb://localhost/shop": (("sqlalchemy", "pymysql"), "mysql"),
}
#: What ``celery_statekit.stores`` has for who asks, and needs an extra.
NAMES: Final = {
    "RedisStore": ("redis", "redis"),
    "PostgreSQLStore": ("psycopg", "postgresql"),
    "MySQLStore": ("pymysql", "mysql"),
    "schema_sql": ("sqlalchemy", "sql"),
}


HIDING: Final = """
import sys

class Hides:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hides())
"""


def run_without(packages: tuple[str, ...], script: str, folder: Path) -> str:
    """What a process prints that cannot import ``packages``."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HIDING.format(packages=packages) + script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def are_installed(*packages: str) -> bool:
    return all(find_spec(package) for package in packages)


def test_the_core_needs_no_extra(tmp_path: Path) -> None:
    """Every public name, a task, a client and stores in memory and in a file."""
    script = """
from celery import Celery
import celery_statekit
from celery_statekit import *
from celery_statekit.stores import MemoryStore, SQLiteStore

app = Celery("shop", broker="memory://", backend="cache+memory://")
app.conf.update(task_always_eager=True, statekit_store="sqlite:///states.db")
setup(app)

@app.task(bind=True)
def count(self, numbers):
    return sum(self.track(numbers))

result = count.delay([1, 2])
Clients(app, ClientState).create("o-1")
print(result.get(), result.task_state.state, *sorted(client.client_id for client in
      Clients(app, ClientState).list()))
"""
    assert run_without(PACKAGES, script, tmp_path).split() == ["3", "SUCCESS", "o-1"]


def test_the_demo_needs_no_extra(tmp_path: Path) -> None:
    """``python -m celery_statekit.demo`` is what one sees first."""
    script = "import runpy; runpy.run_module('celery_statekit.demo', run_name='__main__')"
    assert "SUCCESS" in run_without(PACKAGES, script, tmp_path)


def test_the_commands_need_no_extra(tmp_path: Path) -> None:
    """Celery imports them for each of its own commands, the worker's too."""
    script = """
from click.testing import CliRunner
from celery.bin.celery import celery
from celery_statekit.cli import statekit

celery.add_command(statekit)
print(CliRunner().invoke(celery, ["statekit", "--help"], catch_exceptions=False).output)
"""
    assert "doctor" in run_without(PACKAGES, script, tmp_path)


@pytest.mark.parametrize(
    ("url", "package"), [(url, each) for url, (needs, _) in STORES.items() for each in needs]
)
def test_a_store_says_what_to_install(url: str, package: str, tmp_path: Path) -> None:
    """Opening it names the package that is missing, and the extra that installs it."""
    script = f"""
from celery_statekit import open_store
from celery_statekit.errors import InvalidSetting

try:
    open_store({url!r})
except InvalidSetting as missing:
    print(missing)
"""
    said = run_without((package,), script, tmp_path)

    assert f"pip install celery-statekit[{STORES[url][1]}]" in said
    # Of two that are missing it names the first.
    assert any(f"the package {each} is not installed" in said for each in STORES[url][0])


@pytest.mark.parametrize("url", STORES)
def test_a_store_opens_with_its_extra(url: str) -> None:
    """Nothing is connected to before the first call."""
    packages, extra = STORES[url]
    if not are_installed(*packages):
        pytest.skip(f"celery-statekit[{extra}] is not installed")

    open_store(url).close()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_what_to_install(name: str, tmp_path: Path) -> None:
    """Importing it does; it is an ImportError like any other."""
    package, extra = NAMES[name]
    script = f"""
try:
    from celery_statekit.stores import {name}
except ImportError as missing:
    print(missing)
"""
    said = run_without((package,), script, tmp_path)

    assert said.startswith(f"{name} needs the package ")
    assert said.endswith(f": pip install celery-statekit[{extra}]\n")


def test_an_app_says_what_to_install_when_it_is_first_used(tmp_path: Path) -> None:
    """Its store is derived from its result backend, whose package is missing."""
    script = """
from celery import Celery
from celery_statekit import StatefulTask
from celery_statekit.errors import InvalidSetting

app = Celery("shop", broker="memory://", backend="redis://localhost")

@app.task(base=StatefulTask)
def charge():
    pass

try:
    charge.delay()
except InvalidSetting as missing:
    print(missing.allowed)
"""
    assert run_without(("redis",), script, tmp_path) == "pip install celery-statekit[redis]\n"


def test_a_result_backend_says_what_celery_says(tmp_path: Path) -> None:
    """One that writes in one go is Celery's own, and lacks what Celery's lacks."""
    script = """
from celery import Celery
from celery_statekit import setup

plain, ours = (Celery("shop", backend="redis://localhost") for _ in range(2))
setup(ours)
said = []
for app in (plain, ours):
    try:
        app.backend
    except Exception as missing:
        said.append((type(missing), str(missing)))
print(said[0] == said[1], said)
"""
    assert run_without(("redis",), script, tmp_path).startswith("True ")


def test_the_doctor_says_what_to_install(tmp_path: Path) -> None:
    """It goes on with its other checks."""
    script = """
from celery import Celery
from celery_statekit import setup
from celery_statekit.doctor import examine

app = Celery("shop", broker="memory://", backend="cache+memory://")
app.conf.statekit_store = "redis://localhost"
setup(app)
found = {finding.name: finding for finding in examine(app)}
print(len(found) > 5, found["store"].must_change, found["store"].change)
"""
    said = run_without(("redis",), script, tmp_path)

    assert said == "True True pip install celery-statekit[redis]\n"

"""What the package shows: its names, their docstrings, and what importing it costs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import celery_statekit

ROOT: Final = Path(__file__).parents[2]

#: What a user of the core has not asked for. ``sqlite3`` is in some Pythons not even built.
NOT_IMPORTED: Final = (
    "celery_statekit.cli",
    "celery_statekit.demo",
    "celery_statekit.testing",
    "django",
    "fastapi",
    "flask",
    "pytest",
    "redis",
    "rich",
    "sqlalchemy",
    "sqlite3",
)


def public(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """Name and value of each class, method and function that ``module`` defines for others."""
    for name, value in _shown(module, (type, types.FunctionType)):
        if value.__module__ != module.__name__:
            continue
        yield f"{module.__name__}.{name}", value
        if isinstance(value, type):
            kinds = (types.FunctionType, classmethod, staticmethod, property)
            for member, _ in _shown(value, kinds):
                yield f"{module.__name__}.{name}.{member}", getattr(value, member)


def _shown(owner: Any, kinds: tuple[type, ...]) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, value in vars(owner).items()
        if not name.startswith("_") and isinstance(value, kinds)
    ]


def modules() -> Iterator[types.ModuleType]:
    """Every module of the package that can be imported without an extra."""
    yield celery_statekit
    for found in pkgutil.walk_packages(celery_statekit.__path__, "celery_statekit."):
        yield importlib.import_module(found.name)


def test_all_is_sorted_and_complete() -> None:
    """``__all__`` is sorted, and is what the package imports when it is asked for."""
    names = celery_statekit.__all__

    assert names == sorted(names)
    assert set(names) == set(celery_statekit._HOMES)
    assert set(names) <= set(dir(celery_statekit))


@pytest.mark.parametrize("name", celery_statekit.__all__)
def test_each_public_name_can_be_imported(name: str) -> None:
    """``from celery_statekit import <name>`` works for each name in ``__all__``."""
    namespace: dict[str, Any] = {}
    exec(f"from celery_statekit import {name}", namespace)

    assert namespace[name] is getattr(celery_statekit, name)


def test_importing_the_package_imports_nothing_optional() -> None:
    """``import celery_statekit`` loads no extra, driver or test tool that Celery has not loaded."""
    script = (
        "import sys, celery.app.task, celery.backends.base, celery.result; before = {*sys.modules}; "
        "from celery_statekit import *; print(*{*sys.modules} - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )

    assert set(done.stdout.split()) & set(NOT_IMPORTED) == set()


def test_everything_public_has_a_docstring() -> None:
    """Each public class, function and method says what it does, itself or by what it overrides."""
    silent = [
        name for module in modules() for name, value in public(module) if not inspect.getdoc(value)
    ]

    assert silent == []


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "src").exists(), reason="no source tree: the wheel is installed")
def test_the_wheel_holds_the_types_and_nothing_else_of_the_repository(tmp_path: Path) -> None:
    """The built wheel has every file of the package with ``py.typed``, and no test or document."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, ROOT],
        capture_output=True,
        check=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert "celery_statekit/py.typed" in names
    assert {name for name in names if ".dist-info/" not in name} == expected

"""Who may import whom, held by reading the imports of every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import celery_statekit

PACKAGE: Final = "celery_statekit"
SOURCE: Final = Path(celery_statekit.__file__).parent

#: Low to high. A file imports only from lower layers: the files of one layer do not know each
#: other, but for those of one folder (``testing.*``). The root is the package's ``__init__``:
#: the public names, of which the demo is a user.
LAYERS: Final = (
    ("errors", "chance", "per_process"),
    ("pictures", "frozen"),
    ("states", "progress", "plain"),
    ("checkpoint", "asked"),
    ("reporter",),
    ("record",),
    ("declared", "signals"),
    ("classroom",),
    ("client",),
    ("shapes",),
    ("hydration",),
    ("stores.base", "stores.subscribers"),
    (
        "stores.memory",
        "stores.redis",
        "stores.redis.*",
        "stores.sql",
        "stores.sql.*",
        "stores.sqlite",
        "stores.sqlite.*",
    ),
    ("stores",),
    ("breaker", "settling", "news"),
    ("leases", "written"),
    ("tracker", "watcher", "flusher"),
    ("attempt", "posted"),
    ("contention",),
    ("derived",),
    ("settings",),
    ("backends.onewrite", "backends.whose"),
    ("backends.standing", "asking"),
    ("clients", "report", "result", "backends.guard", "backends.redis"),
    ("backends",),
    ("deliveries", "requests"),
    ("sweep",),
    ("listeners",),
    ("task",),
    ("adoption",),
    ("testing", "testing.*"),
    ("root",),
    ("doctor", "doctor.*"),
    ("steering",),
    ("demo", "cli"),
)

#: What ``import celery_statekit`` never leads to: users pay for what they use.
NEVER_OF_THE_ROOT: Final = ("testing", "testing.*")

#: Policy up, promise down: a store knows keys, versions and documents.
NEVER_OF_A_STORE: Final = ("states", "progress", "declared", "client", "signals", "hydration")

#: What only an extra installs, and the files that may import it.
EXTRAS: Final = {
    "redis": ("stores.redis.connections", "stores.redis.listener", "stores.redis.server"),
    "sqlalchemy": (
        "stores.sql",
        "stores.sql.connections",
        "stores.sql.listener",
        "stores.sql.mysql",
        "stores.sql.postgresql",
        "stores.sql.server",
    ),
    "psycopg": ("stores.sql.listener", "stores.sql.postgresql"),
    "pymysql": ("stores.sql.mysql",),
    "rich": ("cli",),
    "flask": (),
    "fastapi": (),
    "starlette": (),
    "django": (),
    "pytest": ("testing", "testing.*"),
    "hypothesis": ("testing", "testing.*"),
}


def matches(module: str, names: tuple[str, ...]) -> bool:
    """Whether ``module`` is one of ``names``; ``folder.*`` stands for all in the folder."""
    return any(
        module.startswith(name[:-1]) if name.endswith(".*") else module == name for name in names
    )


def height(module: str) -> int:
    """Which layer names ``module``; -1 where none does."""
    return next((at for at, names in enumerate(LAYERS) if matches(module, names)), -1)


def modules(source: Path) -> dict[str, Path]:
    """Every file of the package by its module's name, ``stores.base``, ``stores``, ``root``."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts) or "root"] = path
    return found


def imports(path: Path, source: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, at its top or inside a function."""
    folder = [PACKAGE, *path.relative_to(source).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) + 1 - node.level] if node.level else []
            origin = ".".join([*start, *filter(None, [node.module])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def own(name: str, known: dict[str, Path]) -> str | None:
    """The module of ours that an imported name is, or stands in; None for a foreign one."""
    if name.split(".", maxsplit=1)[0] != PACKAGE:
        return None
    module = name.removeprefix(PACKAGE).removeprefix(".")
    while module and module not in known:
        module = module.rpartition(".")[0]
    return module or "root"


def faults(source: Path) -> list[str]:
    """Every import that is against the rules, one line each."""
    known = modules(source)
    found = []
    for module, path in known.items():
        if height(module) < 0:
            found.append(f"{module}: no layer names it")
            continue
        for line, name in imports(path, source):
            why = fault(module, name, own(name, known))
            found += [f"{module}:{line} imports {name}: {why}"] if why else []
    return found


def fault(module: str, name: str, target: str | None) -> str:
    """Why ``module`` may not import ``name``, which is ``target`` of ours; "" where it may."""
    if target is None:
        extra = name.split(".", maxsplit=1)[0]
        refused = extra in EXTRAS and not matches(module, EXTRAS[extra])
        return "only an extra installs it" if refused else ""
    if module == "root" and matches(target, NEVER_OF_THE_ROOT):
        return "the root never leads there"
    if module.startswith("stores") and target in NEVER_OF_A_STORE:
        return "a store knows nothing of it"
    folders = [names[:-2] for names in LAYERS[height(module)] if names.endswith(".*")]
    if any(matches(module, (f, f"{f}.*")) and matches(target, (f, f"{f}.*")) for f in folders):
        return ""
    return "" if height(target) < height(module) else "it is not below"


def test_every_file_imports_only_from_lower_layers() -> None:
    """No file imports upwards, sideways, or an extra that is not its own."""
    assert faults(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("errors.py", "from celery_statekit.tracker import Tracker"),
        ("errors.py", "def late():\n    from celery_statekit import tracker"),
        ("states.py", "import celery_statekit.progress"),
        ("task.py", "from celery_statekit import States"),
        ("task.py", "from .demo import main"),
        ("__init__.py", "from .demo import main"),
        ("stores/base.py", "from . import memory"),
        ("stores/base.py", "from ..tracker import Tracker"),
        ("stores/memory.py", "from celery_statekit.states import States"),
        ("settings.py", "import redis.client"),
        ("__init__.py", "from celery_statekit.testing import fixtures"),
        ("watchers.py", "import json"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, line: str) -> None:
    """A made-up import, or file, that is against the rules is named; without it nothing is."""
    made_up = (
        "__init__.py errors.py states.py progress.py stores/__init__.py stores/base.py "
        "stores/memory.py tracker.py testing/__init__.py testing/fixtures.py settings.py task.py "
        "demo.py"
    )
    for name in made_up.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "testing/__init__.py").write_text("from celery_statekit.testing import fixtures")
    (tmp_path / "task.py").write_text("from celery_statekit import errors\nimport celery.app.task")
    assert faults(tmp_path) == []

    (tmp_path / file).write_text(line)

    assert len(faults(tmp_path)) == 1

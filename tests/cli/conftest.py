"""Projects written for a test, and apps for one, examined."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, _state

from celery_statekit.doctor import Finding, examine
from celery_statekit.settings import Settings


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """What a test's app adds to all apps is gone after it."""
    finalizers = set(_state._on_app_finalizers)
    current, default = _state._tls.current_app, _state.default_app
    yield
    _state._tls.current_app = current
    _state.set_default_app(default)
    _state._on_app_finalizers.clear()
    _state._on_app_finalizers.update(finalizers)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Celery]]:
    """An app with these settings; with none of them all is well but its having no tasks."""
    made = []

    def make(task_cls: Any = None, **conf: Any) -> Celery:
        app = Celery(f"shop{uuid.uuid4().hex[:8]}", set_as_current=False, task_cls=task_cls)
        app.conf.update(
            broker_url=f"sqla+sqlite:///{tmp_path}/broker.db",
            result_backend=f"file://{tmp_path}",
            statekit_store=f"sqlite:///{tmp_path}/states.db",
        )
        app.conf.update(conf)
        made.append(app)
        return app

    yield make
    for app in made:
        store = vars(Settings.of(app)).get("store")
        if store is not None:
            store.close()
        app.close()


@pytest.fixture
def said() -> Callable[..., list[Finding]]:
    """What is found of one thing; all of it that is no ``ok`` if no thing is named."""

    def said(app: Celery, name: str = "") -> list[Finding]:
        findings = examine(app, timeout=60)  # a busy machine is no finding
        if name:
            return [finding for finding in findings if finding.name == name]
        return [finding for finding in findings if finding.level.value != "ok"]

    return said


@pytest.fixture
def the(said: Callable[..., list[Finding]]) -> Callable[[Celery, str], Finding]:
    """The one finding of this name."""

    def the(app: Celery, name: str) -> Finding:
        (finding,) = said(app, name)
        return finding

    return the


@pytest.fixture
def doctor(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``celery -A proj statekit doctor`` as a user does, on a ``proj.py`` of this text."""

    def doctor(
        source: str, *words: str, before: tuple[str, ...] = ("-A", "proj")
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "proj.py").write_text(textwrap.dedent(source))
        return subprocess.run(
            [sys.executable, "-m", "celery", *before, "statekit", "doctor", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    return doctor

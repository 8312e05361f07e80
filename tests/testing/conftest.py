"""Apps whose servers nobody answers for: a test that reaches for one fails."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app of this test's own."""
    name = f"shop{uuid.uuid4().hex[:8]}"
    nowhere = "redis://nowhere.invalid"
    app = Celery(name, broker=nowhere, backend=nowhere, set_as_current=False)
    yield app
    assert "_statekit" not in vars(app), "it has opened a store of its own"
    app.close()


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """Wait until a condition holds, and return what it gave."""

    def wait(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 20
        while not (holds := condition()):
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.005)
        return holds

    return wait

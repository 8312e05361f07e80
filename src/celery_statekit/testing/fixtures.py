"""Fixtures for the tests of your own tasks.

.. code-block:: text

    # conftest.py
    pytest_plugins = ["celery_statekit.testing.fixtures"]

They are no plugin that loads itself wherever the package is installed: pytest would import it, and
Celery with it, for each test suite of the environment, before coverage is measured, also where no
task is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    # Imported where they are used: who has no worker in a test does not pay for it.
    from celery_statekit.testing.clock import FrozenClock
    from celery_statekit.testing.process import WorkerProcessStarter
    from celery_statekit.testing.runner import StatefulRunner
    from celery_statekit.testing.worker import WorkerStarter


@pytest.fixture
def stateful_run() -> StatefulRunner:
    """Run a task once, as a worker does, and look at what it did; see ``StatefulRunner``."""
    from celery_statekit.testing.runner import StatefulRunner  # noqa: PLC0415 - as said above

    return StatefulRunner()


@pytest.fixture
def frozen_clock() -> Iterator[FrozenClock]:
    """A clock that stands still until ``frozen_clock.advance(seconds)``; see ``FrozenClock``."""
    from celery_statekit.testing.clock import FrozenClock  # noqa: PLC0415 - as said above

    with FrozenClock().frozen() as clock:
        yield clock


@pytest.fixture
def stateful_worker(tmp_path: Path) -> Iterator[WorkerStarter]:
    """Start a real worker in the test's process; see ``InProcessWorker.started``."""
    from celery_statekit.testing.worker import WorkerStarter  # noqa: PLC0415 - as said above

    with ExitStack() as stack:
        yield WorkerStarter(stack, tmp_path)


@pytest.fixture
def stateful_worker_process(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[WorkerProcessStarter]:
    """Start a worker in a process of its own; see ``WorkerProcess``."""
    from celery_statekit.testing.process import WorkerProcessStarter  # noqa: PLC0415 - as said above

    with ExitStack() as stack:
        yield WorkerProcessStarter(stack, tmp_path_factory.mktemp("worker"))

"""What users, and we, test with.

For your tasks: runs that are recorded, a clock that stands still, workers; pytest has them as the
fixtures of :mod:`celery_statekit.testing.fixtures`. For stores: their contract, a checker of
histories, and faults on purpose.

The names below are imported when they are first used: who tests a store does not pay for a worker.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_statekit.testing.checker import (
        BrokenHistory,
        HistoryReport,
        Kept,
        Operation,
        Violation,
        check_history,
    )
    from celery_statekit.testing.clock import FrozenClock
    from celery_statekit.testing.contract import (
        EnumeratesContract,
        LeasesContract,
        ManualClock,
        NotifiesContract,
        PostsContract,
        RenewsContract,
        StoreContract,
    )
    from celery_statekit.testing.faulty import FailsAt, LosesReplies
    from celery_statekit.testing.process import WorkerProcess, WorkerProcessStarter
    from celery_statekit.testing.proxy import FaultProxy
    from celery_statekit.testing.run import Sent, StatefulRun
    from celery_statekit.testing.runner import StatefulRunner
    from celery_statekit.testing.worker import InProcessWorker, WorkerStarter

__all__ = [
    "BrokenHistory",
    "EnumeratesContract",
    "FailsAt",
    "FaultProxy",
    "FrozenClock",
    "HistoryReport",
    "InProcessWorker",
    "Kept",
    "LeasesContract",
    "LosesReplies",
    "ManualClock",
    "NotifiesContract",
    "Operation",
    "PostsContract",
    "RenewsContract",
    "Sent",
    "StatefulRun",
    "StatefulRunner",
    "StoreContract",
    "Violation",
    "WorkerProcess",
    "WorkerProcessStarter",
    "WorkerStarter",
    "check_history",
]

_HOMES = {
    "BrokenHistory": "checker",
    "EnumeratesContract": "contract",
    "FailsAt": "faulty",
    "FaultProxy": "proxy",
    "FrozenClock": "clock",
    "HistoryReport": "checker",
    "InProcessWorker": "worker",
    "Kept": "checker",
    "LeasesContract": "contract",
    "LosesReplies": "faulty",
    "ManualClock": "contract",
    "NotifiesContract": "contract",
    "Operation": "checker",
    "PostsContract": "contract",
    "RenewsContract": "contract",
    "Sent": "run",
    "StatefulRun": "run",
    "StatefulRunner": "runner",
    "StoreContract": "contract",
    "Violation": "checker",
    "WorkerProcess": "process",
    "WorkerProcessStarter": "process",
    "WorkerStarter": "worker",
    "check_history": "checker",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.{_HOMES[name]}"
    if _HOMES[name] == "contract":
        # The contract needs pytest; the rest is for tests of any kind.
        import pytest  # noqa: PLC0415

        pytest.register_assert_rewrite(home)
    found = globals()[name] = getattr(import_module(home), name)
    return found

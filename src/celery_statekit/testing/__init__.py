"""What users, and we, test with: a store's contract, a checker of histories, and faults on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_statekit.testing.checker import (
    BrokenHistory,
    HistoryReport,
    Kept,
    Operation,
    Violation,
    check_history,
)
from celery_statekit.testing.faulty import FailsAt, LosesReplies
from celery_statekit.testing.proxy import FaultProxy

if TYPE_CHECKING:
    from celery_statekit.testing.contract import (
        EnumeratesContract,
        LeasesContract,
        ManualClock,
        NotifiesContract,
        StoreContract,
    )

__all__ = [
    "BrokenHistory",
    "EnumeratesContract",
    "FailsAt",
    "FaultProxy",
    "HistoryReport",
    "Kept",
    "LeasesContract",
    "LosesReplies",
    "ManualClock",
    "NotifiesContract",
    "Operation",
    "StoreContract",
    "Violation",
    "check_history",
]

_CONTRACT = (
    "EnumeratesContract",
    "LeasesContract",
    "ManualClock",
    "NotifiesContract",
    "StoreContract",
)


def __getattr__(name: str) -> Any:
    # The contract needs pytest; the rest is for tests of any kind.
    if name not in _CONTRACT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest  # noqa: PLC0415

    pytest.register_assert_rewrite("celery_statekit.testing.contract")
    from celery_statekit.testing import contract  # noqa: PLC0415

    return getattr(contract, name)

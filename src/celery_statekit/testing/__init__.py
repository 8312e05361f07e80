"""What users, and we, test with: the contract of a store, and stores that fail on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_statekit.testing.faulty import FailsAt, LosesReplies

if TYPE_CHECKING:
    from celery_statekit.testing.contract import (
        EnumeratesContract,
        LeasesContract,
        ManualClock,
        StoreContract,
    )

__all__ = [
    "EnumeratesContract",
    "FailsAt",
    "LeasesContract",
    "LosesReplies",
    "ManualClock",
    "StoreContract",
]

_CONTRACT = ("EnumeratesContract", "LeasesContract", "ManualClock", "StoreContract")


def __getattr__(name: str) -> Any:
    # The contract needs pytest; the rest is for tests of any kind.
    if name not in _CONTRACT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest  # noqa: PLC0415

    pytest.register_assert_rewrite("celery_statekit.testing.contract")
    from celery_statekit.testing import contract  # noqa: PLC0415

    return getattr(contract, name)

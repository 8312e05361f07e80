"""Measuring one configuration, and comparing what is seen with what its cells tell."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from .app import Place
from .cells import CONFIGURATIONS, SHORT, Configuration, read_cells
from .outcomes import measure

MEASURED = SHORT if os.environ.get("STATEKIT_MATRIX") == "short" else CONFIGURATIONS


def of_pool(pool: str) -> list[Any]:
    """The configurations of a pool, as parameters of a test."""
    return [
        pytest.param(each, id=str(each), marks=[pytest.mark.rabbitmq] * (each.broker == "rabbitmq"))
        for each in MEASURED
        if each.pool == pool
    ]


def check_outcomes(
    configuration: Configuration, redis_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each outcome leaves on real workers the history and the result that its cell tells."""
    redis = configuration.broker == "redis"
    place = Place(
        name=f"statekit-matrix-{uuid.uuid4().hex[:12]}",
        pool=configuration.pool,
        ack=configuration.ack,
        mode=configuration.mode,
        broker_url=redis_url if redis else request.getfixturevalue("rabbitmq_url"),
        redis_url=redis_url,
        folder=str(tmp_path),
    )
    cells = [cell for cell in read_cells() if cell.configuration == configuration]
    told = {cell.outcome: cell.expected for cell in cells if cell.told}
    measured = measure(place, told)

    assert sorted(measured.seen) == sorted(cell.outcome for cell in cells)
    wrong = [
        f"{outcome}:\n  told {expected}\n  seen {measured.seen[outcome]}"
        for outcome, expected in told.items()
        if measured.seen[outcome] != expected
    ]
    assert not wrong, "\n".join([f"{configuration}, logs in {tmp_path}", *wrong])

    (retry,) = (change for change in measured.changes["retry"] if change.to_state == "RETRY")
    assert retry.reason == "ConnectionError: not yet"
    assert retry.detail["due_at"] > retry.at

"""One round of a scenario of the soak: a trial for each way a task hangs together with others."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from soak.lost.scenarios import Outcome, run
from tests.servers import ServerMissing

from celery_statekit.testing.fixtures import stateful_worker_process

__all__ = ["stateful_worker_process"]


@pytest.fixture
def prove(record_property: Callable[[str, object], None]) -> Callable[..., Outcome]:
    """Carry out a round of a scenario, in which nothing may be wrong."""

    def carry_out(scenario: str, number: int = 0) -> Outcome:
        try:
            outcome = run(scenario, number)
        except ServerMissing as exc:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"not tested here: {exc}")
        print(f"{scenario}: {outcome.trials} trials, LOST after {outcome.truths}")  # noqa: T201 - for -rP
        assert not outcome.faults, "\n".join(outcome.faults)
        assert outcome.trials
        return outcome

    return carry_out

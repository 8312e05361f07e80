"""Workers, and their children, that are killed: LOST is seen in time, and each task ends once."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(180)]

#: Seconds after which a reader must have seen that an owner is gone; on a machine that has other
#: things to do. Their leases last two.
IN_TIME = 12.0
SHAPES = 4


@pytest.mark.parametrize(
    "scenario", ["child killed", "worker killed and sent again", "threads killed"]
)
def test_another_run_takes_over(prove, scenario):
    """One of each, and what follows a task is done once."""
    outcome = prove(scenario)
    assert outcome.takeovers == SHAPES
    assert max(outcome.truths) < IN_TIME


@pytest.mark.parametrize(("scenario", "trials"), [("gevent killed", SHAPES), ("solo killed", 1)])
def test_pools_of_other_kinds(prove, scenario, trials):
    """They live for several leases, and are taken over once they are killed."""
    if scenario.startswith("gevent"):
        pytest.importorskip("gevent")
    assert prove(scenario).takeovers == trials


def test_the_owner_and_then_who_took_over(prove):
    """The third run ends the task."""
    assert prove("worker killed twice", 1).takeovers == 2 * SHAPES


def test_what_does_not_come_again_fails(prove):
    """LOST by the lease, FAILURE by another worker's sweep: for ``get()``, chords and errbacks."""
    outcome = prove("worker killed early")
    assert len(outcome.truths) == SHAPES
    assert max(outcome.truths) < IN_TIME
    assert outcome.takeovers == 0

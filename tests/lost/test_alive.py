"""What lives is never said to be lost: servers that are gone for longer than leases, long calls."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(180)]

SHAPES = 4
#: Seconds after which a reader must know of a worker that has said that it gives up; its leases
#: would last for longer.
AT_ONCE = 5.0


@pytest.mark.parametrize(
    "scenario",
    [
        "redis as broker killed",
        pytest.param("rabbitmq killed", marks=pytest.mark.rabbitmq),
        "store killed",
    ],
)
def test_a_server_that_is_killed(prove, scenario):
    """Of the broker or of the store, for longer than two leases: one run of each, one end."""
    assert prove(scenario).takeovers == 0


def test_a_run_that_holds_its_interpreter(prove):
    """The main process renews for its children."""
    assert prove("interpreter held").takeovers == 0


def test_a_worker_that_is_told_to_end(prove):
    """It ends what runs, though that takes longer than the leases."""
    assert prove("warm shutdown").takeovers == 0


def test_a_worker_that_gives_up_its_runs(prove):
    """They are LOST at once, and run again at once."""
    outcome = prove("cold shutdown")
    assert outcome.takeovers == SHAPES
    assert max(outcome.truths) < AT_ONCE


def test_a_worker_that_gives_up_what_does_not_come_again(prove):
    """LOST at once, FAILURE by the sweep of another one."""
    outcome = prove("cold shutdown early")
    assert len(outcome.truths) == SHAPES
    assert max(outcome.truths) < AT_ONCE


def test_children_that_come_and_go(prove):
    """A child for each task, and as many as there is work for: none is LOST."""
    assert prove("recycled and scaled").takeovers == 0

"""Workers that stand still, and messages that come twice: one run counts, and no other."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(180)]

SHAPES = 4


def test_who_wakes_is_refused(prove):
    """Nothing of its run leaves: no link, no next step, no part of a chord, no end."""
    # Of this round's chain and links the tasks say nothing, so that only their fence stops them.
    outcome = prove("stopped until another has ended", 1)
    assert outcome.takeovers == SHAPES
    assert outcome.fenced >= SHAPES


def test_who_wakes_takes_no_message_from_who_took_over(prove):
    """On Redis both have one tag: what the first acknowledges is not lost with the second."""
    assert prove("stopped and then the other killed").takeovers == 2 * SHAPES


@pytest.mark.parametrize("scenario", ["visibility timeout", "clock ahead"])
def test_what_is_delivered_again_runs_once(prove, scenario):
    """While its run lives: it is never LOST, and nothing follows it twice."""
    assert prove(scenario).takeovers == 0


@pytest.mark.parametrize("number", [0, 1], ids=["one queue", "two queues"])
def test_what_is_published_twice_runs_once(prove, number):
    """As when the broker's reply to the first is lost; with its chain, its chord, its links."""
    assert prove("published twice", number).takeovers == 0

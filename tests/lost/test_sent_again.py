"""A child that is killed, while its worker lives: the task is sent again, up to a number of times."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_a_child_that_is_killed(stateful_worker_process, monkeypatch):
    """Acknowledged early, with ``on_lost="requeue"``: with its arguments; and in the end poison."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    worker = stateful_worker_process("killing_shop:app", pool="prefork")
    tasks = worker.app.tasks
    once, poison = tasks["shop.kills_once"].delay(1, b=2), tasks["shop.kills"].delay()

    for result in (once, poison):
        worker.until(lambda result=result: result.task_state.final, what="the end", timeout=60.0)

    again = [("LOST", 1), ("PENDING", 1), ("STARTED", 2)]
    assert moves(once) == [("PENDING", 0), ("STARTED", 1), *again, ("SUCCESS", 2)]
    assert once.get(timeout=10) == [1, 2]
    assert moves(poison) == [("PENDING", 0), ("STARTED", 1), *again, ("LOST", 2), ("FAILURE", 2)]
    assert poison.task_state.error["type"] == "PoisonTask"


def moves(result):
    return [(change.to_state, change.attempt) for change in result.history()]

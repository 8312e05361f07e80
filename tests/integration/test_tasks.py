"""What tasks tell of themselves in the normal course, and what their workers log of it."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord, group

from celery_statekit import StatefulResult

from .nodes import PATIENCE, states_of, until
from .places import BOTH_WAYS

pytestmark = [pytest.mark.redis, pytest.mark.timeout(180)]

#: The worker logs no warning, error or traceback.
QUIETLY = pytest.mark.usefixtures("nothing_unusual")


@QUIETLY
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_run(celery_setup: Any, tasks: Any, pool: str) -> None:
    """The states are entered in order, each once, and the record says by whom; Celery agrees."""
    result = tasks.load.delay(1000)

    assert result.get(timeout=PATIENCE) == 1000
    assert states_of(result) == "PENDING STARTED READING IMPORTING INDEXING SUCCESS"
    assert result.history()[-1].worker.startswith(celery_setup.worker.hostname())
    assert result.task_state.progress.current == 1000
    assert result.state == "SUCCESS"


@QUIETLY
def test_it_is_seen_while_it_runs(celery_setup: Any, tasks: Any) -> None:
    """Watchers see each state or a later one, the progress, and the end; nothing comes twice."""
    result = tasks.load.delay(500, gate="go")

    seen = []
    for state in result.watch(timeout=PATIENCE):
        seen.append(state)
        if state.state == "IMPORTING" and state.progress and state.progress.current == 500:
            celery_setup.worker.open("go")

    versions = [state.version for state in seen]
    assert versions == sorted(set(versions))
    assert seen[-1].state == "SUCCESS"
    assert any(state.progress and state.progress.total == 500 for state in seen[:-1])


@BOTH_WAYS
@QUIETLY
def test_canvas(celery_setup: Any, tasks: Any) -> None:
    """Chain, group and chord give what they give; each task of them has a whole history."""
    last = chain(tasks.add.s(1, 2), tasks.add.s(3), tasks.add.s(4)).apply_async()
    many = group(tasks.add.s(n, n) for n in range(8)).apply_async()
    body = chord([tasks.add.s(n, 1) for n in range(8)])(tasks.total.s())

    assert last.get(timeout=PATIENCE) == 10
    assert many.get(timeout=PATIENCE) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert body.get(timeout=PATIENCE) == 36
    for result in (last, last.parent, last.parent.parent, *many, *body.parent, body):
        until(lambda result=result: result.task_state.final)
        assert states_of(result) == "PENDING STARTED SUCCESS"


@BOTH_WAYS
def test_canvas_that_fails(celery_setup: Any, tasks: Any) -> None:
    """The steps after the failed one are known to have failed, though none of them ever ran."""
    last = chain(tasks.add.s(1, 2), tasks.fail.s(), tasks.add.s(4)).apply_async()
    body = chord([tasks.add.s(1, 1), tasks.fail.s()])(tasks.total.s())

    for result in (last, body):
        until(lambda result=result: result.task_state.state == "FAILURE")
        assert "STARTED" not in states_of(result)
    assert last.parent.task_state.error == {"type": "KeyError", "message": "'no such order'"}
    assert last.parent.parent.task_state.state == "SUCCESS"


@BOTH_WAYS
@QUIETLY
def test_retries(celery_setup: Any, tasks: Any) -> None:
    """Each attempt and its reason stays in the history, and the progress of the one before."""
    result = tasks.retried.delay()

    assert result.get(timeout=PATIENCE) == 3
    assert states_of(result) == "PENDING STARTED RETRY STARTED RETRY STARTED SUCCESS"
    retries = [change for change in result.history() if change.to_state == "RETRY"]
    assert [change.reason for change in retries] == ["ConnectionError: the bank is closed"] * 2
    assert [change.attempt for change in retries] == [1, 2]
    assert result.task_state.last_progress.current == 2


@QUIETLY
def test_another_process_asks(celery_setup: Any, tasks: Any) -> None:
    """An id is enough to be told all of it."""
    id = tasks.load.delay(3, gate="go").id
    result: StatefulResult[int] = StatefulResult(id, app=celery_setup.app)

    reached = result.wait(until="IMPORTING", timeout=PATIENCE)
    celery_setup.worker.open("go")

    assert reached.reason == "3 rows"
    assert result.wait(until="SUCCESS", timeout=PATIENCE).final

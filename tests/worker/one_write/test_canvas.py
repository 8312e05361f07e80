"""Groups, chains and chords: what Celery makes of them, our tasks and plain ones make too.

Every test here also passes with Celery alone.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery import VERSION as CELERY
from celery import Celery, chain, chord, group
from celery.exceptions import ChordError
from celery.result import AsyncResult, GroupResult

WAIT = 10


@pytest.fixture(params=["celery", "plain", "stateful", "mixed"])
def kind(request: pytest.FixtureRequest) -> str:
    """Whose tasks they are; ``mixed``: header and body of different kinds."""
    return request.param


class Tasks:
    """What the canvases are made of."""

    def __init__(self, app: Celery, kind: str) -> None:
        from celery import Task

        plain = {"base": Task}
        first = {} if kind in ("stateful", "mixed") else plain
        second = {} if kind == "stateful" else plain
        self.failed: list[str] = []
        self.failed_once = threading.Event()

        @app.task(name="add", **first)
        def add(x: Any, y: Any = 1) -> Any:
            return x + y

        @app.task(name="fail", **first)
        def fail(*_: Any) -> None:
            raise KeyError("row")

        @app.task(name="total", **second)
        def total(numbers: Any) -> Any:
            return sum(numbers)

        @app.task(name="caught", **second)
        def caught(request: Any, exc: BaseException, traceback: Any) -> None:
            self.failed.append(type(exc).__name__)
            self.failed_once.set()

        @app.task(name="flaky", bind=True, max_retries=2, **first)
        def flaky(self: Any, x: int) -> int:
            if self.request.retries < 2:
                raise self.retry(countdown=0, exc=ValueError("not yet"))
            return x

        self.add, self.fail, self.total, self.caught, self.flaky = add, fail, total, caught, flaky


@pytest.fixture
def tasks(app: Celery, kind: str, work: Any) -> Tasks:
    """The tasks, and a worker for them."""
    made = Tasks(app, kind)
    app.finalize()
    work()
    return made


def test_chain(tasks: Tasks) -> None:
    """Each step takes the result of the one before."""
    result = chain(tasks.add.s(1, 1), tasks.add.s(10), tasks.add.s(100)).apply_async()

    assert result.get(timeout=WAIT) == 112
    assert result.parent.get(timeout=WAIT) == 12


def test_chain_with_a_failing_step(tasks: Tasks, until: Any) -> None:
    """The later steps fail with it, and nobody waits for ever."""
    result = chain(tasks.add.s(1, 1), tasks.fail.s(), tasks.add.s(5)).apply_async()

    with pytest.raises(KeyError):
        result.get(timeout=WAIT)
    # Celery publishes the next step before it stores the end of this one.
    for step, state in (
        (result, "FAILURE"),
        (result.parent, "FAILURE"),
        (result.parent.parent, "SUCCESS"),
    ):
        until(lambda step=step, state=state: step.state == state)


def test_links_and_errbacks(tasks: Tasks) -> None:
    """``link`` and ``link_error`` are called, each once."""
    linked = tasks.add.s(5).set(task_id="linked" + tasks.add.app.main)
    tasks.add.apply_async((1, 1), link=linked)
    with pytest.raises(KeyError):
        tasks.fail.apply_async(link_error=tasks.caught.s()).get(timeout=WAIT)

    assert AsyncResult(linked.id, app=tasks.add.app).get(timeout=WAIT) == 7
    assert tasks.failed_once.wait(WAIT)
    assert tasks.failed == ["KeyError"]


def test_group(tasks: Tasks) -> None:
    """All results, in order; and each as it comes."""
    result = group(tasks.add.s(n) for n in range(10)).apply_async()

    assert result.get(timeout=WAIT) == list(range(1, 11))
    assert result.successful()
    assert dict(result.iter_native()).keys() == {child.id for child in result}


def test_group_saved_and_restored(tasks: Tasks) -> None:
    """A group is found again by its id, until it is deleted."""
    result = group(tasks.add.s(n) for n in range(3)).apply_async()
    result.save()

    restored = GroupResult.restore(result.id, app=tasks.add.app)
    if CELERY < (5, 7):
        # Of two results of one id that wait, the second hears nothing (celery 5.6
        # backends/asynchronous.py:242), and get() waits also for what came before the group was
        # restored (result.py:707).
        result.join(timeout=WAIT)
    values = restored.get if CELERY >= (5, 7) else restored.join
    assert values(timeout=WAIT) == [1, 2, 3]
    restored.delete()
    assert GroupResult.restore(result.id, app=tasks.add.app) is None


def test_group_with_a_failing_member(tasks: Tasks) -> None:
    """Its error is raised where it is asked for; the others have their results."""
    result = group(tasks.add.s(1), tasks.fail.s(), tasks.add.s(2)).apply_async()

    with pytest.raises(KeyError):
        result.get(timeout=WAIT)
    values = result.get(timeout=WAIT, propagate=False)
    assert [values[0], type(values[1]), values[2]] == [2, KeyError, 3]


def test_chord(tasks: Tasks) -> None:
    """The body gets what the header gave."""
    assert chord(tasks.add.s(n) for n in range(10))(tasks.total.s()).get(timeout=WAIT) == 55


def test_chord_of_retrying_members(tasks: Tasks) -> None:
    """A member counts when it has ended, not when it is retried."""
    assert chord(tasks.flaky.s(n) for n in range(3))(tasks.total.s()).get(timeout=WAIT) == 3


def test_chord_with_a_failing_member(tasks: Tasks) -> None:
    """The body fails with it, and its errback is called once."""
    body = tasks.total.s().on_error(tasks.caught.s())
    result = chord([tasks.add.s(1), tasks.fail.s(), tasks.add.s(2)])(body)

    with pytest.raises((ChordError, KeyError)):
        result.get(timeout=WAIT)
    assert tasks.failed_once.wait(WAIT)
    assert tasks.failed == ["ChordError"]


def test_chord_of_chains(tasks: Tasks) -> None:
    """The last step of each chain counts."""
    header = [chain(tasks.add.s(n), tasks.add.s(10)) for n in range(3)]

    assert chord(header)(tasks.total.s()).get(timeout=WAIT) == 36


def test_chord_of_a_chain_that_fails_early(tasks: Tasks) -> None:
    """The member is the last step, which never ran: the chord fails and does not hang."""
    header = [tasks.add.s(1), chain(tasks.fail.s(), tasks.add.s(10))]

    with pytest.raises((ChordError, KeyError)):
        chord(header)(tasks.total.s()).get(timeout=WAIT)


def test_chord_of_groups(tasks: Tasks) -> None:
    """The members of a group in the header count one by one."""
    inner = group(tasks.add.s(1), tasks.add.s(2))

    assert chord([inner, tasks.add.s(3)])(tasks.total.s()).get(timeout=WAIT) == 9


def test_chord_whose_body_is_a_group(tasks: Tasks) -> None:
    """A failing header fails each of them."""
    good = chord([tasks.add.s(1)], group(tasks.total.s(), tasks.total.s())).apply_async()
    bad = chord([tasks.fail.s()], group(tasks.total.s(), tasks.total.s())).apply_async()

    assert good.get(timeout=WAIT) == [2, 2]
    with pytest.raises(KeyError):
        bad.get(timeout=WAIT)


def test_chord_in_a_chain(tasks: Tasks) -> None:
    """A group followed by a task is a chord; what follows takes its body's result."""
    result = chain(
        tasks.add.s(1), group(tasks.add.s(10), tasks.add.s(20)), tasks.total.s(), tasks.add.s(100)
    ).apply_async()

    assert result.get(timeout=WAIT) == 134


def test_messages_of_a_result(tasks: Tasks) -> None:
    """``on_message`` is called with what is published of the result."""
    heard: list[Any] = []
    result = tasks.add.delay(1)

    result.get(timeout=WAIT, on_message=heard.append)
    assert all(meta["task_id"] == result.id for meta in heard)


def test_propagation(tasks: Tasks) -> None:
    """``propagate=False`` gives the error instead of raising it; a callback gets results."""
    got: list[Any] = []

    assert isinstance(tasks.fail.delay().get(timeout=WAIT, propagate=False), KeyError)
    tasks.add.delay(1).get(timeout=WAIT, callback=lambda id, value: got.append(value))
    assert got == [2]

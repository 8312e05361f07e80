"""The flusher of a recorded run stands for that of a process, call by call."""

from __future__ import annotations

import inspect
import threading

from celery_statekit.flusher import Flusher, flusher
from celery_statekit.testing.inline import InlineFlusher


def _public(cls: type) -> dict[str, object]:
    return {name: value for name, value in vars(cls).items() if not name.startswith("_")}


def test_it_answers_to_every_call_of_the_real_one() -> None:
    """With the same parameters: what the library asks of the one it may ask of the other."""
    for name, method in _public(Flusher).items():
        answer = vars(InlineFlusher)[name]
        if inspect.isfunction(method):
            assert inspect.signature(answer).parameters.keys() == (
                inspect.signature(method).parameters.keys()
            ), name


class Report:
    """Has news once."""

    interval = 0.01

    def __init__(self) -> None:
        self.written = threading.Event()

    def flush(self) -> None:
        self.written.set()


def test_runs_of_other_threads_are_not_its_own() -> None:
    """Their progress is written by the process's flusher, in its time."""
    theirs, mine = Report(), Report()
    with InlineFlusher.in_place() as inline:
        thread = threading.Thread(target=lambda: flusher().watch(theirs))
        thread.start()
        thread.join()
        flusher().watch(mine)
        assert theirs.written.wait(10)
        assert not mine.written.is_set()
        inline.hurry(mine)
        assert mine.written.is_set()
        theirs.written.clear()
        flusher().hurry(theirs)
        assert theirs.written.wait(10)
        inline.forget(mine)
        inline.forget(theirs)
    mine.written.clear()
    inline.hurry(mine)

    assert not mine.written.is_set()


def test_it_is_in_place_for_a_block_only() -> None:
    """Then the real one is the process's again."""
    before = flusher()

    with InlineFlusher.in_place() as inline:
        assert flusher() is inline

    assert flusher() is before

"""Work done at the same moment, in threads or in processes, within a deadline."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, Final

#: Seconds that anything here may take before it counts as hanging.
DEADLINE: Final = 20.0
#: Seconds that others are given to get as far as they can alone: a first try, and further ones.
PAUSES: Final = (0.03, 0.15, 0.75, 2.0)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What ``work(0)`` to ``work(count - 1)`` return, begun together in threads."""
    outcomes: dict[int, Any] = {}
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait(DEADLINE)
        outcomes[number] = _outcome(lambda: work(number))

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE * 2)
    return [_returned(outcomes.get(number)) for number in range(count)]


def in_processes(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What ``work(0)`` to ``work(count - 1)`` return, begun together in forked processes."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(count)
    pipes = [context.Pipe(duplex=False) for _ in range(count)]

    def run(number: int) -> None:
        start.wait(DEADLINE)
        pipes[number][1].send(_outcome(lambda: work(number)))

    children = [context.Process(target=run, args=(number,)) for number in range(count)]
    try:
        for child in children:
            child.start()
        outcomes = [
            _received(pipe, child) for (pipe, _), child in zip(pipes, children, strict=True)
        ]
    finally:
        for child in children:
            child.join(1.0)
            child.kill()
            child.join()
        for ends in pipes:
            for end in ends:
                end.close()
    return [_returned(outcome) for outcome in outcomes]


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a child of a fork."""
    return in_processes(1, lambda _: work())[0]


def patiently(call: Callable[[], Any]) -> Any:
    """What ``call`` returns once it returns something, before the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not (returned := call()):
        assert time.monotonic() < deadline, "it went on for ever"
    return returned


def with_growing_patience(succeeds: Callable[[float], bool]) -> None:
    """``succeeds`` for some pause, in seconds, that lets others get as far as they can alone.

    For what no event tells, that another thread waits inside a call: on a slow machine a short
    pause is too short, while a store that is wrong is wrong for any.
    """
    assert any(succeeds(pause) for pause in PAUSES), "it is not so, however long the pause"


def _outcome(work: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "", work()
    except Exception as exc:  # noqa: BLE001 - the parent tells
        return f"{type(exc).__name__}: {exc}", None


def _received(pipe: Connection, child: Any) -> tuple[str, Any]:
    wait([pipe, child.sentinel], DEADLINE * 2)
    received: tuple[str, Any] = pipe.recv() if pipe.poll() else ("it died or hangs", None)
    return received


def _returned(outcome: tuple[str, Any] | None) -> Any:
    assert outcome is not None, "it hangs"
    why, returned = outcome
    assert not why, why
    return returned

"""Hear of a task's moves, and wait for them: ``python -m examples.hooks``."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from celery_statekit import TaskState
from celery_statekit.errors import StateNotReached
from examples.hooks.app import app, long_task
from examples.workers import Workers, arguments, running

#: Seconds after which something has gone wrong.
PATIENCE = 30.0

#: Who was called, in which process, and what it was told.
Call = tuple[str, str, str]


def calls_on(line: socket.socket) -> Iterator[Call]:
    """What hooks and receivers tell, in whichever process; sleeps until they do."""
    while True:
        yield tuple(json.loads(line.recv(4096)))


def show(call: Call) -> None:
    """Print one call."""
    who, process, what = call
    print(f"  {who:15}  in {process:31}  {what}")


def is_half_done(state: TaskState) -> bool:
    """Whether half of the parts are done."""
    return state.progress is not None and state.progress.percent == 50


def follow(workers: Workers, calls: Iterator[Call]) -> None:
    """Follow a task to its end, and see who else has heard of it."""
    result = long_task.delay(10, then="wait")
    made = [next(calls)]  # PENDING
    workers.start()

    state = result.wait(until=is_half_done, timeout=PATIENCE)
    print(f"result.wait(until=is_half_done) returned: {state.state} {state.progress}")
    print("result.watch() yielded, among others:")
    for state in result.watch(timeout=PATIENCE):  # what is now, then all that is newer
        if is_half_done(state):
            Path(os.environ["EXAMPLE_FOLDER"], "may-go-on").touch()
        if is_half_done(state) or state.final:
            print(f"  {state.state} {state.progress}")

    made += islice(calls, 5)
    print("Who else has heard of it:")
    for call in sorted(made, key=lambda call: call[0]):
        show(call)


def wait_in_vain() -> None:
    """Wait for a state that the task will not enter."""
    result = long_task.delay(3, then="fail")
    try:
        result.wait(until="SUCCESS", timeout=PATIENCE)
    except StateNotReached as ended:
        print(f'\nresult.wait(until="SUCCESS") raised: {ended}')


def be_called(calls: Iterator[Call]) -> None:
    """Sleep until the receiver is called."""
    show(next(call for call in calls if call[0] == "receiver"))


def main() -> None:
    """Tell the story."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.bind(("127.0.0.1", 0))
        line.settimeout(PATIENCE)
        os.environ["EXAMPLE_PORT"] = str(line.getsockname()[1])  # the workers know it from here
        calls = calls_on(line)
        with running(app, arguments(__doc__), workers=0) as workers:
            follow(workers, calls)
            wait_in_vain()
            be_called(calls)
            print("\nThe process of a task is killed; asleep until the receiver is called:")
            long_task.delay(3, then="die")
            be_called(calls)


if __name__ == "__main__":
    main()

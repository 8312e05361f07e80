"""Tasks seen from outside, from PENDING to the end and after: ``python -m examples.lifecycle``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery_statekit import StatefulResult
from examples.lifecycle.app import add, app, nap, whisper
from examples.workers import ROOT, Workers, arguments, running, wait_until

#: Seconds after which something has gone wrong.
PATIENCE = 30.0

Result = StatefulResult[Any]
#: Prints what another process sees of tasks, which gets nothing but their ids.
Look = Callable[..., None]


@contextmanager
def onlooker() -> Iterator[Look]:
    """Another process that looks at tasks: ``look.py``."""
    command = [sys.executable, "-m", "examples.lifecycle.look"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        asked, told = process.stdin, process.stdout
        assert asked is not None
        assert told is not None

        def look(*ids: str) -> None:
            for id in ids:
                print(id, file=asked, flush=True)
                print(" ", told.readline().rstrip())

        yield look


def run(*module: str) -> None:
    """Run a Python module in a process of its own."""
    sys.stdout.flush()
    subprocess.run([sys.executable, "-m", *module], cwd=ROOT, check=True)


def allow(name: str) -> None:
    """Let the tasks go on that wait for this file."""
    Path(os.environ["EXAMPLE_FOLDER"], name).touch()


def send_sums() -> list[Result]:
    """Send two sums, and return when both are recorded."""
    sums = [add.delay(2, 3), add.delay(2, "a")]
    for result in sums:
        result.wait(until="PENDING", timeout=PATIENCE)
    return sums


def from_pending_to_end(workers: Workers, look: Look) -> None:
    """Two sums, one of which cannot be added."""
    sums = send_sums()
    ids = [result.id for result in sums]
    print("add(2, 3) and add(2, 'a') were sent, no worker runs. The third id was never sent.")
    look(*ids, str(uuid.uuid4()))

    workers.start(concurrency=2)
    wait_until(lambda: all(result.status == "STARTED" for result in sums))
    print("\nA worker was started, and runs both.")
    look(*ids)

    allow("may-add")
    for result in sums:
        result.get(timeout=PATIENCE, propagate=False)
    print("\nBoth have ended.")
    look(*ids)
    for result in sums:
        print("  history:", *[change.to_state for change in result.history()])
    for result in sums:
        show_stored(result)


def show_stored(result: Result) -> None:
    """Print what Celery's result backend holds: one JSON text, here in a file of its own."""
    key = f"celery-task-meta-{result.id}"
    if app.conf.result_backend.startswith("file:"):
        place, text = (
            "file results/",
            Path(os.environ["EXAMPLE_FOLDER"], "results", key).read_text(),
        )
    else:
        place, text = "key ", app.backend.get(app.backend.get_key_for_task(result.id))
    meta = json.loads(text)
    if meta["traceback"]:
        meta["traceback"] = meta["traceback"].splitlines()[0] + " ..."
    print(f"\nThe {place}{key}:")
    print(json.dumps(meta, indent=2))


def state_of_its_own(look: Look) -> None:
    """A state that nobody has declared."""
    result = nap.delay()
    # The record says so first, Celery's own result a moment later.
    wait_until(lambda: result.status == "GOING_TO_SLEEP")
    print("\nA state of the task's own. r.status and r.info:", result.status, result.info)
    look(result.id)
    allow("may-wake")
    print("  r.get():", result.get(timeout=PATIENCE))


def ignored_result(look: Look) -> None:
    """A result that Celery does not keep."""
    result = whisper.delay()
    result.wait(until="SUCCESS", timeout=PATIENCE)
    print("\nA task with ignore_result=True has ended.")
    look(result.id)


def purged(workers: Workers, look: Look) -> None:
    """Messages that are thrown away before a worker has read them."""
    for worker in workers:
        worker.process.terminate()  # SIGTERM: a warm shutdown
        worker.wait_until_dead()
    sums = send_sums()
    print("\nThe worker was stopped, both sums were sent again. celery purge:")
    run("celery", "-A", "examples.lifecycle.app", "purge", "--force")
    look(*[result.id for result in sums])

    sent = sums[0].task_state.queued_at or 0.0
    until = time.localtime(sent + app.conf.result_expires)
    print(time.strftime("  It says so until %Y-%m-%d %H:%M:%S, sent + result_expires.", until))
    print("\nAnother was sent with a result_expires of one second, and purged. A second later:")
    run("examples.lifecycle.forgetful")


def main() -> None:
    """Tell the story."""
    with running(app, arguments(__doc__), workers=0) as workers, onlooker() as look:
        from_pending_to_end(workers, look)
        state_of_its_own(look)
        ignored_result(look)
        purged(workers, look)


if __name__ == "__main__":
    main()

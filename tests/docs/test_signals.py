"""Where each signal fires is measured, with a worker of pool processes, and is what the page says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from tests.pages import Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

#: Seconds in which a thing has to have happened.
PATIENCE: Final = 60.0

SHOP: Final = """
import os, threading, time
from pathlib import Path

from celery import Celery
from celery.exceptions import Ignore, Reject
from celery_statekit import ClientState, States, setup, signals
from celery_statekit.errors import IllegalTransition, StaleAttempt
from celery_statekit.settings import Settings

HERE = Path(__file__).parent
app = setup(Celery("shop", broker="filesystem://"))
app.conf.broker_transport_options = dict.fromkeys(("data_folder_in", "data_folder_out"), "queue")
app.conf.statekit_progress_interval = 0.05
app.conf.update(statekit_lease=2.0, statekit_lost_grace=0.5)


def receiver(name):
    def receive(sender, signal, **payload):
        (fact,) = payload.values()
        state = getattr(fact, "to_state", "")
        thread = threading.current_thread()
        own = "own" if thread is threading.main_thread() else thread.name
        with (HERE / "heard").open("a") as heard:
            heard.write(f"{name} {sender} {state or '-'} {os.getpid()} {own}\\n")

    return receive


for name in (
    "state_changed", "progressed", "transition_refused", "attempt_fenced", "task_lost",
    "client_changed",
):
    getattr(signals, name).connect(receiver(name), weak=False)


def until(happened):
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Moves(States):
    FIRST = "First"
    SECOND = "Second"


@app.task(bind=True, states=Moves)
def good(self):
    self.enter(Moves.SECOND)
    self.progress.set(1, 2)
    until(lambda: "progressed" in (HERE / "heard").read_text())
    self.clients(ClientState).update("c-1", lambda client: None, create=True)
    try:
        self.enter(Moves.FIRST)
    except IllegalTransition:
        pass


@app.task
def bad():
    raise ValueError


@app.task(bind=True)
def again(self):
    if not self.request.retries:
        raise self.retry(countdown=0)


@app.task
def ignored():
    raise Ignore


@app.task
def requeued():
    raise Reject("later", requeue=True)


@app.task
def killed():
    os.kill(os.getpid(), 9)


@app.task(time_limit=1)
def late():
    time.sleep(600)


@app.task
def stopped():
    (HERE / "stoppable").touch()
    time.sleep(600)


@app.task(bind=True)
def stale(self):
    Settings.of(app).tracker.lose(self.request.id, lambda _: True, reason="it seems so")
    newer.apply(task_id=self.request.id)
    try:
        self.enter("SOMEWHERE")
    except StaleAttempt:
        (HERE / "fenced").touch()
        raise


@app.task
def newer():
    raise Ignore


@app.task(acks_late=True, reject_on_worker_lost=True)
def twice():
    if not (HERE / "twice").exists():
        (HERE / "twice").touch()
        os.kill(os.getpid(), 9)


@app.task
def gone():
    raise AssertionError
"""

PUBLISHER: Final = """
import shop
from shop import *

from celery_statekit import Clients
from celery_statekit.attempt import Attempt
from celery_statekit.settings import Settings

results = {
    task.name.removeprefix("shop."): task.delay()
    for task in (good, bad, again, ignored, requeued, killed, late, stopped, stale)
}
Clients(app, ClientState).create("c-2")
results["twice"] = twice.delay()
results["gone"] = gone.apply_async(queue="nobody")
claimed = Attempt.of(
    Settings.of(app).tracker, results["gone"].id, gone.name, gone._flow, worker="celery@gone:1"
)
claimed.claim()
claimed.release()
until((HERE / "stoppable").exists)
app.control.revoke(results["stopped"].id, terminate=True)
for name in ("good", "bad", "again", "killed", "late", "stopped"):
    results[name].wait(until=lambda state: state.final, timeout=30)
results["ignored"].wait(until="IGNORED", timeout=30)
results["requeued"].wait(until="REJECTED", timeout=30)
until((HERE / "fenced").exists)
results["twice"].wait(until=lambda state: state.final, timeout=30)
results["gone"].wait(until=lambda state: state.final, timeout=30)
"""


class Heard(NamedTuple):
    """A signal that was received."""

    signal: str
    sender: str
    state: str
    process: str
    thread: str


#: Signal, sender and state, and the process and the thread in which each was seen.
PLACES: Final = {
    ("state_changed", "shop.good", "PENDING"): ("publisher", "statekit-flusher"),
    ("state_changed", "shop.good", "STARTED"): ("pool child", "own"),
    ("state_changed", "shop.good", "SECOND"): ("pool child", "own"),
    ("state_changed", "shop.good", "SUCCESS"): ("pool child", "own"),
    ("state_changed", "shop.bad", "FAILURE"): ("pool child", "own"),
    ("state_changed", "shop.again", "RETRY"): ("pool child", "own"),
    ("state_changed", "shop.ignored", "IGNORED"): ("pool child", "own"),
    ("state_changed", "shop.requeued", "REJECTED"): ("pool child", "own"),
    ("state_changed", "shop.killed", "FAILURE"): ("worker's main process", "statekit-flusher"),
    ("state_changed", "shop.late", "FAILURE"): ("worker's main process", "statekit-flusher"),
    ("state_changed", "shop.stopped", "REVOKED"): ("worker's main process", "statekit-flusher"),
    ("progressed", "shop.good", "-"): ("pool child", "statekit-teller"),
    ("transition_refused", "shop.good", "-"): ("pool child", "own"),
    ("attempt_fenced", "shop.stale", "-"): ("pool child", "own"),
    ("task_lost", "shop.stale", "-"): ("pool child", "own"),
    ("task_lost", "shop.twice", "-"): ("worker's main process", "statekit-flusher"),
    ("task_lost", "shop.gone", "-"): ("worker's main process", "statekit-sweep"),
}


def what_was_heard(folder: Path) -> set[str]:
    """Signal, sender and state of each line."""
    lines = (folder / "heard").read_text().splitlines()
    return {" ".join(line.split()[:3]) for line in lines}


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> set[Heard]:
    """What was heard of a run in which every kind of signal fires, and where."""
    folder = tmp_path_factory.mktemp("signals")
    (folder / "queue").mkdir()
    (folder / "heard").touch()
    (folder / "shop.py").write_text(SHOP)
    (folder / "publisher.py").write_text(PUBLISHER)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-c", "4"]
    with (folder / "log").open("wb") as log:
        options = {"cwd": folder, "env": environment, "stdout": log, "stderr": log}
        worker = subprocess.Popen(command, start_new_session=True, **options)
        try:
            publisher = subprocess.Popen([sys.executable, "publisher.py"], **options)
            assert publisher.wait(PATIENCE) == 0, (folder / "log").read_text()
            # What is told after a write may come a moment later than what was written is read.
            deadline = time.monotonic() + PATIENCE
            while missing := {" ".join(what) for what in PLACES} - what_was_heard(folder):
                assert time.monotonic() < deadline, (missing, (folder / "log").read_text())
                time.sleep(0.05)
        finally:
            # Not in order: a pool of which a child was killed need not come to an end.
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    names = {worker.pid: "worker's main process", publisher.pid: "publisher"}
    lines = [line.split() for line in (folder / "heard").read_text().splitlines()]
    return {
        Heard(signal, sender, state, names.get(int(pid), "pool child"), thread)
        for signal, sender, state, pid, thread in lines
    }


@pytest.mark.parametrize("what", PLACES, ids=" ".join)
def test_a_signal_fires_where_the_page_says(heard: set[Heard], what: tuple[str, ...]) -> None:
    """Each fires in one place, whichever task it is of."""
    assert {each[3:] for each in heard if each[:3] == what} == {PLACES[what]}


def test_a_clients_signal_fires_where_it_was_written(heard: set[Heard]) -> None:
    """``client_changed`` fires in the process, and the thread, that wrote: in a task, and outside."""
    places = {each[3:] for each in heard if each.signal == "client_changed"}

    assert places == {("pool child", "own"), ("publisher", "own")}


def test_the_page_says_what_was_measured() -> None:
    """Its table has a row for each place, and none for a place that was not measured."""
    rows = [line.split("|") for line in Page("reference/signals.md").text.splitlines()]
    table = {
        (row[1].strip(" `"), row[3].strip(), row[4].strip(" `"))
        for row in rows
        if len(row) == 6 and row[1].startswith(" `")
    }
    measured = {
        (signal, process, "the task's" if thread == "own" else thread)
        for (signal, _, _), (process, thread) in PLACES.items()
    }

    assert table == {
        *measured,
        ("client_changed", "pool child", "the task's"),
        ("client_changed", "whichever writes", "the one that writes"),
    }

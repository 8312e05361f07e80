"""``stateful_worker_process``: a worker in a process of its own, to be stopped and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from celery_statekit.testing import WorkerProcess
from celery_statekit.testing.transport import Folder

pytest_plugins = ("celery_statekit.testing.fixtures",)
pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
APP = "process_shop:app"


@pytest.fixture
def shop(monkeypatch):
    """The module of the app."""
    monkeypatch.syspath_prepend(HERE)
    import process_shop

    return process_shop


def lives(pid):
    """Whether the process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def group_of(pid):
    """Every living process of its group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


# --- a worker ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads"])
def test_tasks_run(shop, stateful_worker_process, pool):
    """In another process, with messages, results and records in files of the test."""
    worker = stateful_worker_process(APP, pool=pool, concurrency=2)
    result = shop.load.delay(3)

    state = worker.wait(result)

    assert isinstance(worker, WorkerProcess)
    assert worker.running
    assert result.get(timeout=10) == [1, None, [0, 1, 2]]
    assert state.worker.startswith("worker1@test:")
    moves = [change.to_state for change in result.history()]
    assert moves == ["PENDING", "STARTED", "READING", "IMPORTING", "SUCCESS"]
    assert shop.add.s(1, 2).apply_async(countdown=0.1).get(timeout=20) == 3
    assert str(worker) == "<WorkerProcess of process_shop:app: runs>"


def test_what_was_not_acknowledged_comes_again(shop, stateful_worker_process, tmp_path):
    """Of a worker that was killed, and is started again; a checkpoint says where to go on."""
    worker = stateful_worker_process(APP)
    result = shop.load.delay(10, str(tmp_path / "gate"))
    worker.until(lambda: _finished(result) == 7)
    first = worker.pid

    worker.restart()
    state = worker.wait(result)

    assert result.get(timeout=10) == [2, {"row": 5, "attempt": 1}, [7, 8, 9]]
    assert (state.attempt, state.checkpoint.finished) == (2, {"": 10})
    assert worker.pid != first
    assert not lives(first)


def test_several_workers(shop, stateful_worker_process, tmp_path):
    """Another one goes on where one was killed."""
    first, second = stateful_worker_process(APP), stateful_worker_process(APP)
    gate = tmp_path / "gate"
    result = shop.load.delay(10, str(gate))
    first.until(lambda: _finished(result) == 7)
    runs = first if result.task_state.worker.startswith("worker1@") else second
    other = second if runs is first else first

    runs.kill()
    state = other.wait(result)

    assert not runs.running
    assert state.attempt == 2
    assert result.get(timeout=10)[2] == [7, 8, 9]


def test_a_child_that_dies(shop, stateful_worker_process):
    """The worker's main process says so."""
    worker = stateful_worker_process(APP, pool="prefork")
    state = worker.wait(shop.die.delay())

    assert (state.state, state.error["type"]) == ("FAILURE", "WorkerLostError")


def test_it_ends_in_order(shop, stateful_worker_process, tmp_path):
    """What it runs it runs to the end."""
    worker = stateful_worker_process(APP, pool="prefork")
    gate = tmp_path / "gate"
    result = shop.load.delay(10, str(gate))
    worker.until(lambda: _finished(result) == 7)
    threading.Timer(0.2, gate.touch).start()

    worker.stop()

    assert not worker.running
    assert result.task_state.state == "SUCCESS"
    assert result.task_state.attempt == 1
    worker.start()
    assert shop.add.delay(1, 2).get(timeout=20) == 3


def test_it_can_be_revoked(shop, stateful_worker_process, tmp_path):
    """Remote control reaches it."""
    worker = stateful_worker_process(APP, pool="prefork")
    result = shop.load.delay(10, str(tmp_path / "gate"))
    worker.until(lambda: _finished(result) == 7)

    result.revoke(terminate=True)

    assert worker.wait(result).state == "REVOKED"


def test_its_environment_and_arguments(shop, stateful_worker_process):
    """Variables and words of the command."""
    worker = stateful_worker_process(
        APP, environment={"SHOP": "open"}, arguments=["-Q", "other,celery"]
    )

    assert shop.environment.delay("SHOP").get(timeout=20) == "open"
    assert shop.add.apply_async((1,), queue="other").get(timeout=20) == 1
    assert "-> other" in worker.log.read_text() or "other" in worker.log.read_text()


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_worker_that_does_not_come_up(shop, stateful_worker_process):
    """It says why."""
    why = r"(?s)the worker did not come up: exit code 1; the last .*No such option"
    with pytest.raises(RuntimeError, match=why):
        stateful_worker_process(APP, arguments=["--no-such-option"])


def test_a_worker_that_does_not_come_up_in_time(shop, stateful_worker_process):
    """It is killed, and how long was waited is told."""
    why = r"the worker did not come up within 0\.01 s, and was killed; it printed nothing"
    with pytest.raises(RuntimeError, match=why):
        stateful_worker_process(APP, patience=0.01)


def test_an_app_that_is_not_there(stateful_worker_process):
    """It is looked for here first."""
    with pytest.raises(ModuleNotFoundError):
        stateful_worker_process("no_such_shop:app")


@pytest.mark.parametrize(("dies", "how"), [("die", "killed by SIGKILL"), ("leave", "exit code 3")])
def test_a_worker_that_dies(shop, stateful_worker_process, dies, how):
    """Who waits for its task hears of it, with how it ended and what it printed last."""
    worker = stateful_worker_process(APP)
    result = getattr(shop, dies).delay()

    with pytest.raises(RuntimeError) as died:
        worker.wait(result)

    first, *printed = str(died.value).splitlines()
    assert first.startswith(f"the worker has ended ({how}) before the end of {result.id}; the last")
    assert any(f"shop.{dies}" in line or dies in line for line in printed)


def test_a_wait_in_vain(shop, stateful_worker_process):
    """What does not happen in time is said, with what the worker printed last, in whole lines."""
    worker = stateful_worker_process(APP)
    with worker.log.open("a") as log:
        log.writelines(f"line {n} {'x' * 200}\n" for n in range(100))

    with pytest.raises(RuntimeError) as late:
        worker.until(lambda: False, 0.05, "rain")

    first, *printed = str(late.value).splitlines()
    assert first.startswith("in vain was waited for rain, for 0.05 s: the worker runs; the last")
    assert printed == [f"line {n} {'x' * 200}" for n in range(60, 100)]


# --- what is left of it --------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_nothing_lives_longer_than_the_test(shop, pool, stateful_worker_process, until):
    """No process of the worker; and the app uses its own servers again."""
    before = dict(vars(shop.app))
    worker = stateful_worker_process(APP, pool=pool, concurrency=2)
    shop.add.delay(1).get(timeout=20)
    pid = worker.pid
    assert len(group_of(pid)) == (1 if pool == "solo" else 3)

    worker.close()

    until(lambda: group_of(pid) == [])
    assert "_connection" not in vars(shop.app)
    assert vars(shop.app).get("_statekit") is before.get("_statekit")
    worker.close()


def test_the_number_of_a_worker_that_died_is_nobody_elses(shop, stateful_worker_process, until):
    """Until it is ended: what is killed by that number is no stranger."""
    worker = stateful_worker_process(APP)
    pid = worker.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not worker.running)

    os.kill(pid, 0)
    assert str(worker) == "<WorkerProcess of process_shop:app: ended>"

    worker.kill()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


TEST = """
import os, signal, sys
from pathlib import Path
pytest_plugins = ["celery_statekit.testing.fixtures"]

def test_it(stateful_worker_process):
    worker = stateful_worker_process("process_shop:app", pool="prefork")
    Path("pid").write_text(str(worker.pid))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_lives_longer_than_a_test_run_that_is_killed(tmp_path, until):
    """The worker ends when it hears no more of the test."""
    (tmp_path / "test_it.py").write_text(TEST)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == -signal.SIGKILL, ended.stdout
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not group_of(pid))


# --- its broker ----------------------------------------------------------------------------------


def _message(tag):
    return {"properties": {"delivery_tag": tag, "delivery_info": {}}, "body": tag}


def test_each_message_is_taken_once(tmp_path):
    """However many take at the same time."""
    folder = Folder(tmp_path)
    for n in range(300):
        folder.put("a/b:c.d", _message(str(n)))
    taken = []

    def take():
        while found := folder.take("a/b:c.d"):
            taken.append(found[1]["body"])

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(map(int, taken)) == list(range(300))


def test_messages_are_taken_in_order_and_given_back_where_they_were(tmp_path):
    """What comes again comes first, and says so."""
    folder = Folder(tmp_path)
    for n in range(3):
        folder.put("q", _message(str(n)))
    first, _ = folder.take("q")
    second, _ = folder.take("q")
    second.unlink()  # acknowledged

    folder.give_all_back()

    again = [folder.take("q")[1] for _ in range(2)]
    assert [message["body"] for message in again] == ["0", "2"]
    assert [m["properties"]["delivery_info"].get("redelivered", False) for m in again] == [
        True,
        False,
    ]
    assert folder.take("q") is None
    folder.give_back(first)
    folder.give_back(second)


@pytest.mark.parametrize("end", ["ack", "reject", "requeue", "close"])
def test_what_becomes_of_a_message(tmp_path, end):
    """It is gone when it is acknowledged or refused, and comes again when it is given back."""
    folder = Folder(tmp_path)
    with folder.connect() as connection:
        queue = connection.SimpleQueue("q")
        queue.put({"n": 1})
        message = queue.get(timeout=5)
        if end == "ack":
            message.ack()
        elif end == "reject":
            message.reject()
        elif end == "requeue":
            message.requeue()
        queue.close()
    with folder.connect() as connection:
        queue = connection.SimpleQueue("q")
        left = queue.qsize()
        queue.close()

    assert left == (1 if end in ("requeue", "close") else 0)
    folder.give_all_back()
    assert [*folder.taken.iterdir()] == []


def test_what_nobody_acknowledges_is_taken_for_good(tmp_path):
    """A consumer without acknowledgements leaves nothing to come again."""
    folder, got = Folder(tmp_path), []
    folder.put("q", _message("1"))
    with folder.connect() as connection, connection.channel() as channel:
        channel.basic_consume("q", True, got.append, "me")
        connection.drain_events(timeout=5)

    assert [message.body for message in got] == [b"1"]
    assert [*folder.taken.iterdir()] == []


def _finished(result):
    left = result.task_state.checkpoint
    return left.finished.get("", 0) if left else 0

"""Cancel, pause and resume with real worker processes: prefork and gevent."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from celery import Celery, chain
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from celery_statekit.settings import Settings

HERE = Path(__file__).parent
WAIT = 30.0

pytestmark = [pytest.mark.slow, pytest.mark.redis]


def load():
    """The module of the app, which the worker imports by its name."""
    spec = importlib.util.spec_from_file_location("shop_of_steering", HERE / "steered_shop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["prefork", "prefork-sqlite", "gevent", "threads"])
def worker(request, redis_url, tmp_path_factory):
    """A worker of each pool, and the app on this side."""
    pool, _, kind = request.param.partition("-")
    folder = tmp_path_factory.mktemp("worker")
    name = f"shop{uuid.uuid4().hex[:8]}"
    store = f"sqlite:///{folder}/states.db" if kind else redis_url
    place = {"url": redis_url, "name": name, "store": store}
    shop = load()
    app, backends = shop.build(**place), []
    app._get_backend = lambda: backends.append(Celery._get_backend(app)) or backends[-1]
    log = folder / "log"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)]),
        shop.PLACE: json.dumps(place),
    }
    command = [sys.executable, "-m", "celery", "-A", "steered_shop", "worker", "-P", pool]
    command += ["-c", "3", "-l", "INFO", "-n", f"{name}@test"]
    command += ["--without-gossip", "--without-mingle"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True, cwd=HERE
        )
    try:
        wait_until(lambda: counted(app, "ready") or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        app.set_current()
        yield app, pool
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for backend in backends:
            backend.result_consumer.stop()
            backend.result_consumer._pubsub = None
            backend.client.connection_pool.disconnect()
        Settings.of(app).store.close()
        app.close()


@pytest.fixture
def app(worker):
    """The app."""
    return worker[0]


def wait_until(happened):
    deadline = time.monotonic() + WAIT
    while not (gave := happened()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return gave


def counted(app, what):
    return int(app.backend.client.get(f"{app.main}:{what}") or 0)


def begun(app, result):
    wait_until(lambda: counted(app, f"begun:{result.id}"))
    return result


def revoked(app, result, reason):
    """Celery and the record say so; the record, once the task's own process is done with it."""
    with pytest.raises(TaskRevokedError) as told:
        AsyncResult(result.id, app=app).get(timeout=WAIT)
    assert str(told.value) == reason
    state = wait_until(lambda: (now := result.task_state).final and now)
    assert (state.state, state.reason) == ("REVOKED", reason)
    assert AsyncResult(result.id, app=app).state == "REVOKED"
    return state


def test_cancelled(app):
    """It cleans up; the rest of its chain and its errback hear of it; the worker goes on."""
    tasks = app.tasks
    result = chain(tasks["wait"].s(), tasks["add"].s()).apply_async(link_error=tasks["caught"].s())
    first = begun(app, result.parent)
    assert first.cancel("stop", by="ada") is True
    state = revoked(app, first, "stop")

    assert state.asked.by == "ada"
    wait_until(lambda: first.task_state.asked.seen)
    with pytest.raises(TaskRevokedError):
        AsyncResult(result.id, app=app).get(timeout=WAIT)
    wait_until(lambda: counted(app, f"caught:{first.id}"))
    assert tasks["add"].delay(1).get(timeout=WAIT) == 2
    assert counted(app, f"cleaned:{first.id}") == 1
    assert counted(app, f"caught:{first.id}") == 1


def test_paused_and_resumed(app):
    """It stands still, beside others that run; then it goes on, and is cancelled in a pause."""
    result = begun(app, app.tasks["wait"].delay())
    assert result.pause("lunch", by="bob") is True
    wait_until(lambda: result.task_state.paused)
    stood = result.task_state.progress.current
    assert app.tasks["add"].delay(1).get(timeout=WAIT) == 2
    time.sleep(0.3)
    assert result.task_state.progress.current == stood
    assert result.resume(by="bob") is True
    wait_until(lambda: result.task_state.progress.current > stood)
    assert result.pause() is True
    wait_until(lambda: result.task_state.paused)
    assert result.cancel("enough") is True

    revoked(app, result, "enough")
    assert counted(app, f"cleaned:{result.id}") == 1


@pytest.mark.parametrize("looks", [True, False])
def test_hard(app, worker, looks):
    """A run that never looks is killed where that can be; where it cannot, one that looks ends."""
    if worker[1] == "threads" and not looks:
        pytest.skip("nothing ends a thread")
    tasks = app.tasks
    result = chain(tasks["wait"].s(looks), tasks["add"].s()).apply_async(
        link_error=tasks["caught"].s()
    )
    first = begun(app, result.parent)
    assert first.cancel("at once", by="ada", hard=True) is True
    state = revoked(app, first, "at once")

    assert (state.asked.what, state.asked.by) == ("cancel", "ada")
    assert first.history()[-1].detail == {"by": "ada"}
    with pytest.raises(TaskRevokedError):
        AsyncResult(result.id, app=app).get(timeout=WAIT)
    wait_until(lambda: counted(app, f"caught:{first.id}"))
    assert tasks["add"].delay(1).get(timeout=WAIT) == 2
    assert counted(app, f"caught:{first.id}") == 1


def test_hard_after_it_was_asked(app, worker):
    """Who was asked and does not look is killed: the first reason counts."""
    if worker[1] == "threads":
        pytest.skip("nothing ends a thread")
    result = begun(app, app.tasks["wait"].delay(looks=False))
    assert result.cancel("please", by="ada") is True
    assert result.cancel("now", by="bob", hard=True) is False

    assert revoked(app, result, "please").asked.by == "ada"


def test_a_soft_time_limit_ends_a_pause(app, worker):
    """It is raised where the run waits."""
    if worker[1] != "prefork":
        pytest.skip("this pool has no soft time limits")
    result = begun(app, app.tasks["limited"].delay())
    result.pause()
    wait_until(lambda: result.task_state.paused)

    assert result.get(timeout=WAIT) == "out of time"
    assert result.task_state.asked is None

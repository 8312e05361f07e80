"""One write with real worker processes: prefork, whose children may be lost, and gevent."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from celery import Celery, chain, chord, group
from celery.exceptions import ChordError, TaskRevokedError, TimeLimitExceeded
from celery.result import AsyncResult

from celery_statekit import StatefulResult
from celery_statekit.settings import Settings

HERE = Path(__file__).parent
WAIT = 30.0


def load() -> ModuleType:
    """The module of the app, which the worker imports by its name."""
    spec = importlib.util.spec_from_file_location("shop_of_one_write", HERE / "shop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["prefork", "gevent"])
def worker(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Celery, str]]:
    """A worker of each pool, and the app on this side."""
    name = f"shop{uuid.uuid4().hex[:8]}"
    place = {"url": redis_url, "name": name}
    shop = load()
    app = shop.build(**place)
    backends: list[Any] = []

    def get_backend() -> Any:
        backends.append(Celery._get_backend(app))
        return backends[-1]

    app._get_backend = get_backend
    log = tmp_path_factory.mktemp("worker") / "log"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)]),
        shop.PLACE: json.dumps(place),
    }
    command = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-P", request.param]
    command += ["-c", "3", "-l", "INFO", "-n", f"{name}@test"]
    command += ["--without-gossip", "--without-mingle"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True, cwd=HERE
        )
    try:
        wait_until(lambda: counted(app, "ready") or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield app, request.param
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for backend in backends:
            backend.result_consumer.stop()
            backend.result_consumer._pubsub = None
            backend.client.connection_pool.disconnect()
        Settings.of(app).store.close()
        app.close()


@pytest.fixture(params=["plain", "stateful"])
def kind(request: pytest.FixtureRequest) -> str:
    """Whose tasks they are."""
    return request.param


@pytest.fixture
def make(worker: tuple[Celery, str], kind: str) -> Callable[..., Any]:
    """A signature of one of the app's tasks."""
    app = worker[0]
    app.set_current()
    return lambda name, *args: app.tasks[f"{kind}.{name}"].s(*args)


@pytest.fixture
def prefork(worker: tuple[Celery, str]) -> None:
    """Only where children can be lost, stopped or killed."""
    if worker[1] != "prefork":
        pytest.skip("this pool has no processes")


def wait_until(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def counted(app: Celery, what: str) -> int:
    return int(app.backend.client.get(f"{app.main}:{what}") or 0)


def agrees(result: Any, kind: str, state: str) -> None:
    """Celery says ``state``, and so does the record of a stateful task."""
    app = result.app
    wait_until(lambda: AsyncResult(result.id, app=app).state == state)
    if kind == "stateful":
        ours = StatefulResult(result.id, app=app).task_state
        assert (ours.state, ours.source) == (state, "record")


def test_canvas(make: Any) -> None:
    """Group, chain and chord."""
    assert group(make("add", n) for n in range(20)).apply_async().get(timeout=WAIT) == [
        *range(1, 21)
    ]
    assert chain(make("add", 1), make("add", 10)).apply_async().get(timeout=WAIT) == 12
    body = make("total")
    assert chord([make("add", n) for n in range(20)])(body).get(timeout=WAIT) == 210


@pytest.mark.usefixtures("prefork")
def test_a_lost_worker(make: Any, kind: str, worker: Any) -> None:
    """FAILURE, from the worker's main process; the errback is called once, the chord fails."""
    result = make("killed").apply_async(link_error=make("caught"))
    with pytest.raises(WorkerLostError):
        result.get(timeout=WAIT)
    agrees(result, kind, "FAILURE")
    wait_until(lambda: counted(worker[0], f"caught:{result.id}"))
    assert counted(worker[0], f"caught:{result.id}") == 1

    joined = chord([make("add", 1), make("killed")])(make("total"))
    with pytest.raises((WorkerLostError, ChordError)):
        joined.get(timeout=WAIT)
    agrees(joined, "plain", "FAILURE")


@pytest.mark.usefixtures("prefork")
def test_terminated(make: Any, kind: str, worker: Any) -> None:
    """REVOKED, and what comes late changes nothing."""
    result = make("wait", 20).apply_async()
    wait_until(lambda: counted(worker[0], f"running:{result.id}"))
    result.revoke(terminate=True)

    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT)
    worker[0].backend.store_result(result.id, {"current": 1}, "PROGRESS")
    agrees(result, kind, "REVOKED")


def test_revoked_before_it_runs(make: Any, kind: str) -> None:
    """REVOKED at once, and still when its time comes."""
    result = make("add", 1).apply_async(countdown=3)
    result.revoke()
    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT)
    agrees(result, "plain", "REVOKED")


@pytest.mark.usefixtures("prefork")
def test_time_limit(make: Any, kind: str, worker: Any) -> None:
    """Celery stores a hard time limit's FAILURE twice: the errback is called once."""
    result = make("wait", 20).apply_async(time_limit=1, link_error=make("caught"))
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=WAIT)
    agrees(result, kind, "FAILURE")
    after = make("add", 1).apply_async()
    assert after.get(timeout=WAIT) == 2
    assert counted(worker[0], f"caught:{result.id}") == 1

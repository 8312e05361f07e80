"""What is true after workers, brokers and stores have been restarted or killed."""

from __future__ import annotations

from typing import Any

import kombu
import pytest

from celery_statekit import Clients

from .nodes import PATIENCE, states_of, until
from .places import BOTH_BACKENDS, RABBITMQ
from .shop import Order

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(180)]

#: The three options with which kombu looks every second for messages that nobody acknowledged
#: for four seconds, rather than every 100 seconds for those of an hour (kombu 5.7
#: transport/redis.py:1063).
SOON = {
    "visibility_timeout": 4,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    "unacked_mutex_expire": 2,  # a worker that is killed may hold it
}
OVER_REDIS = pytest.mark.skipif(
    kombu.VERSION[:2] < (5, 7),
    reason="kombu 5.6 looks every 100 seconds, whatever is said (transport/redis.py:1382)",
)


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Tasks are acknowledged when they have run; who is killed counts as alive for five seconds."""
    broker = request.node.callspec.params["celery_broker"]
    options = {"broker_transport_options": SOON} if "redis" in broker else {}
    return {"task_acks_late": True, "statekit_lease": 5.0, **options}


@RABBITMQ
def test_a_killed_worker(celery_setup: Any, tasks: Any) -> None:
    """RabbitMQ delivers its task once more, which waits for its turn: the history has both runs."""
    result = tasks.load.delay(10, gate="never")
    result.wait(until="IMPORTING", timeout=PATIENCE)

    celery_setup.worker.kill()
    assert result.task_state.state == "IMPORTING"
    lost = result.wait(until="LOST", timeout=PATIENCE)
    assert lost.reason == f"no sign of life of {lost.worker} for 5 s"
    celery_setup.worker.restart()

    assert result.get(timeout=PATIENCE) == 10
    once = "STARTED READING IMPORTING"
    assert states_of(result) == f"PENDING {once} LOST {once} INDEXING SUCCESS"
    assert [change.attempt for change in result.history()] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 2]
    first, second = (result.history()[number].worker for number in (1, 5))
    assert first != second


@OVER_REDIS
def test_a_killed_worker_over_redis(celery_setup: Any, tasks: Any) -> None:
    """Redis delivers it again, maybe to several: no run writes after a newer one, one ends it."""
    result = tasks.load.delay(10, gate="never")
    result.wait(until="IMPORTING", timeout=PATIENCE)

    celery_setup.worker.kill()
    celery_setup.worker.restart()

    assert result.get(timeout=PATIENCE) == 10
    attempts = [change.attempt for change in result.history()]
    assert attempts == sorted(attempts)
    assert attempts[-1] >= 2
    assert states_of(result).split().count("SUCCESS") == 1


@OVER_REDIS
def test_a_worker_that_wakes(celery_setup: Any, tasks: Any, second_worker: Any) -> None:
    """A worker that stood still while another did its work changes nothing when it goes on."""
    result = tasks.load.delay(10, gate="go")
    begun = result.wait(until="IMPORTING", timeout=PATIENCE)
    workers = sorted(
        (celery_setup.worker, second_worker),
        key=lambda worker: not begun.worker.startswith(worker.hostname()),
    )

    workers[0].pause()
    assert result.get(timeout=PATIENCE) == 10
    ended = result.history()
    workers[1].open("go")
    workers[0].unpause()
    until(lambda: f"{result.id}] ignored" in workers[0].logs())

    assert ended[-1].worker.startswith(workers[1].hostname())
    assert result.history() == ended
    assert result.state == "SUCCESS"


@RABBITMQ
def test_a_warm_shutdown(celery_setup: Any, tasks: Any) -> None:
    """A worker that is told to end finishes what runs; what was queued waits, and runs later."""
    result = tasks.load.delay(10, gate="go")
    result.wait(until="IMPORTING", timeout=PATIENCE)

    celery_setup.worker.kill("SIGTERM")
    until(lambda: "Warm shutdown" in celery_setup.worker.logs())
    waiting = tasks.load.delay(5)
    celery_setup.worker.open("go")

    assert celery_setup.worker.ended() == 0
    assert result.task_state.state == "SUCCESS"
    assert waiting.task_state.state == "PENDING"

    celery_setup.worker.restart()

    assert waiting.get(timeout=PATIENCE) == 5
    assert states_of(waiting) == states_of(result)


@RABBITMQ
def test_a_broker_that_restarts(celery_setup: Any, tasks: Any) -> None:
    """Clients and records are not the broker's: they stay, and what is queued there runs after."""
    clients = Clients(celery_setup.app, Order)
    clients.create("o-1")
    tasks.buy.delay("o-1", 3).get(timeout=PATIENCE)
    celery_setup.worker.kill("SIGTERM")
    assert celery_setup.worker.ended() == 0
    waiting = tasks.buy.delay("o-1", 4)

    celery_setup.broker.restart()

    assert clients.get("o-1").total == 3
    assert waiting.task_state.state == "PENDING"
    celery_setup.worker.restart()
    waiting.get(timeout=PATIENCE)
    tasks.charge.delay("o-1").get(timeout=PATIENCE)
    assert clients.get("o-1").total == 12
    assert [change.to_state for change in clients.history("o-1")] == ["PAID"]


@BOTH_BACKENDS
def test_a_store_that_restarts(celery_setup: Any, tasks: Any) -> None:
    """A task that runs meanwhile goes on; its history has no gap."""
    result = tasks.load.delay(10, gate="go")
    result.wait(until="IMPORTING", timeout=PATIENCE)

    celery_setup.backend.restart()
    celery_setup.worker.open("go")

    assert result.get(timeout=PATIENCE) == 10
    assert states_of(result) == "PENDING STARTED READING IMPORTING INDEXING SUCCESS"
    assert [change.number for change in result.history()] == [1, 2, 3, 4, 5, 6]

"""What may be set about results is obeyed as Celery obeys it, and a plain Celery app reads them."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from celery import VERSION as CELERY
from celery import Celery
from celery.result import AsyncResult

from celery_statekit.backends import RedisBackend, SentinelBackend


def run(app: Celery, task: Any, work: Any) -> Any:
    """Run a task of the app, and return its result."""

    @task(name="add")
    def add(x: int, y: int = 1) -> int:
        return x + y

    work()
    result = add.apply_async((1,), {"y": 2})
    result.get(timeout=10)
    return result


@pytest.fixture(params=["celery", "plain", "stateful"])
def kind(request: pytest.FixtureRequest) -> str:
    """Whose tasks they are."""
    return request.param


@pytest.fixture
def task(app: Celery, kind: str) -> Any:
    """``app.task`` of that kind."""
    from celery import Task

    return lambda **options: app.task(**({} if kind == "stateful" else {"base": Task}), **options)


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml"])
def test_serializers(app: Celery, make: Any, task: Any, work: Any, serializer: str) -> None:
    """Results, and errors, in whatever serializer; and another app reads them."""
    app.conf.update(result_serializer=serializer, result_accept_content=[serializer])
    other = make("celery")
    other.conf.update(result_serializer=serializer, result_accept_content=[serializer])

    @task(name="fail")
    def fail() -> None:
        raise KeyError("row")

    result = run(app, task, work)
    assert AsyncResult(result.id, app=other).get(timeout=10) == 3
    failed = fail.delay()
    with pytest.raises(KeyError):
        failed.get(timeout=10)
    with pytest.raises(KeyError):
        AsyncResult(failed.id, app=other).get(timeout=10)


@pytest.mark.parametrize(
    ("expires", "seconds"), [(None, -1), (0, -1), (60, 60), (timedelta(minutes=2), 120)]
)
def test_expiry(
    app: Celery, task: Any, work: Any, client: Any, name: str, expires: Any, seconds: int
) -> None:
    """``result_expires``; None and 0 mean never."""
    app.conf.result_expires = expires
    result = run(app, task, work)

    ttl = client.ttl(f"{name}:celery-task-meta-{result.id}")
    assert seconds - 30 <= ttl <= seconds if seconds > 0 else ttl == -1


def test_expiry_of_failures(app: Celery, task: Any, work: Any, client: Any, name: str) -> None:
    """``result_failure_expires`` is for failures only."""
    app.conf.update(result_expires=1000, result_failure_expires=5000)

    @task(name="fail")
    def fail() -> None:
        raise KeyError("row")

    good = run(app, task, work)
    bad = fail.delay()
    bad.get(timeout=10, propagate=False)

    ttls = [client.ttl(f"{name}:celery-task-meta-{result.id}") for result in (good, bad)]
    assert ttls[0] <= 1000
    if CELERY >= (5, 7):  # older ones know one time for all
        assert 4000 < ttls[1] <= 5000


def test_extended_results(app: Celery, task: Any, work: Any) -> None:
    """``result_extended`` keeps name, arguments, worker and queue."""
    app.conf.result_extended = True
    result = run(app, task, work)

    assert (result.name, list(result.args), result.kwargs) == ("add", [1], {"y": 2})
    assert result.worker == "celery@test"
    assert result.queue == app.conf.task_default_queue


def test_compression(app: Celery, make: Any, task: Any, work: Any, client: Any, name: str) -> None:
    """``result_compression``; an app without it reads the result."""
    app.conf.result_compression = "gzip"
    result = run(app, task, work)

    stored = client.get(f"{name}:celery-task-meta-{result.id}")
    assert (b"status" in stored) is (CELERY < (5, 7))  # which do not compress
    assert AsyncResult(result.id, app=make("celery")).get(timeout=10) == 3


def test_a_backend_that_all_threads_share(app: Celery, task: Any, work: Any) -> None:
    """``result_backend_thread_safe`` and ``result_backend_always_retry``."""
    app.conf.update(result_backend_thread_safe=True, result_backend_always_retry=True)

    assert run(app, task, work).state == "SUCCESS"


def test_eager(app: Celery, task: Any, until: Any) -> None:
    """Stored where ``task_store_eager_result`` says so."""
    app.conf.update(task_always_eager=True, task_store_eager_result=True)

    @task(name="add")
    def add(x: int) -> int:
        return x + 1

    result = add.delay(1)

    assert result.get() == 2
    assert AsyncResult(result.id, app=app).get(timeout=10) == 2


def test_a_state_given_from_outside(app: Celery, task: Any, work: Any) -> None:
    """``update_state(task_id=...)`` of another task shows, until that has ended."""

    @task(name="add", bind=True)
    def add(self: Any) -> int:
        return 1

    add.update_state(task_id="other" + app.main, state="PACKING", meta={"box": 1})
    other = AsyncResult("other" + app.main, app=app)
    assert (other.state, other.info) == ("PACKING", {"box": 1})
    other.forget()
    assert other.state == "PENDING"


@pytest.mark.parametrize(
    ("url", "kind_of_backend"),
    [
        ("redis://127.0.0.1:6379/15", RedisBackend),
        ("rediss://127.0.0.1:6379/15?ssl_cert_reqs=none", RedisBackend),
        ("redis+socket:///tmp/redis.sock?virtual_host=3", RedisBackend),
        ("sentinel://127.0.0.1:26379/3;sentinel://127.0.0.1:26380/3", SentinelBackend),
        ("celery_statekit.backends:RedisBackend+redis://127.0.0.1:6379/15", RedisBackend),
    ],
)
def test_urls(make: Any, url: str, kind_of_backend: type) -> None:
    """Every way to name a Redis leads to ours, and to the same server as Celery's."""
    app, celerys = make("stateful"), make("celery")
    app.conf.result_backend = url
    celerys.conf.result_backend = url.removeprefix("celery_statekit.backends:RedisBackend+")

    assert type(app.backend) is kind_of_backend
    ours, theirs = app.backend.connparams, celerys.backend.connparams
    ours.pop("driver_info", None)
    theirs.pop("driver_info", None)
    assert ours == theirs


def test_what_the_app_puts_in_place_of_a_backend_stays(make: Any) -> None:
    """An app that has a Redis backend of its own keeps it."""
    from celery_statekit import setup

    app = make("celery")
    app.loader.override_backends = {"redis": "celery.backends.redis:RedisBackend"}
    setup(app)

    assert type(app.backend) is not RedisBackend


def test_redis_is_imported_where_it_is_used() -> None:
    """An app without it needs no redis-py."""
    script = (
        "import sys; from celery import Celery; from celery_statekit import setup\n"
        "app = Celery('a', broker='memory://', backend='cache+memory://'); setup(app)\n"
        "import celery_statekit.backends\n"
        "@app.task\n"
        "def one(): return 1\n"
        "one.apply()\n"
        "assert 'redis' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

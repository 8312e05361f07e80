"""Which app is meant: by a message that is sent, of a backend that was opened early, when pickled."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
from celery import Celery, Task

from celery_statekit import StatefulTask, setup
from celery_statekit.backends import RedisBackend
from celery_statekit.flusher import flusher
from celery_statekit.settings import Settings


@pytest.fixture
def another(server_url: str, name: str) -> Any:
    """Make one more app, which publishes into the same broker."""
    made: list[Celery] = []

    def make(store: str) -> Celery:
        app = Celery(f"{name}-{len(made)}", broker="memory://", set_as_current=False)
        app.conf.update(result_backend=server_url, statekit_store=store, task_default_queue=name)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


def add_task(app: Celery, base: type[Task]) -> Any:
    """Give the app a task whose name others have too."""

    @app.task(name="same", base=base, shared=False)
    def same() -> None:
        """Does nothing."""

    app.finalize()
    return same


def is_recorded(app: Celery, id: str) -> bool:
    """Whether the app's store knows the task, once all that was to be written is."""
    assert flusher().call(lambda: None, 10)
    return Settings.of(app).tracker.read(id).known


def test_pending_is_recorded_by_the_app_that_sends(app: Celery, another: Any) -> None:
    """Though another app, which is the current one, has a task of that name."""
    second = setup(another("memory://second"))
    add_task(app, StatefulTask)
    same = add_task(second, StatefulTask)

    for id in (same.delay().id, second.send_task("same").id, same.s().apply_async().id):
        assert is_recorded(second, id)
        assert not is_recorded(app, id)


def test_a_plain_app_sends_its_own_task(app: Celery, another: Any) -> None:
    """It is no stateful task, though one of that name is in another app."""
    add_task(app, StatefulTask)
    same = add_task(another("memory://third"), Task)

    assert not is_recorded(app, same.delay().id)


def test_an_app_that_has_no_such_task_sends_it_by_name(app: Celery, another: Any) -> None:
    """The one app that knows it records it."""
    add_task(app, StatefulTask)

    assert is_recorded(app, another("memory://fourth").send_task("same").id)


def test_a_backend_that_was_opened_before_setup(another: Any) -> None:
    """In this thread and in any other, what is opened is ours."""
    app = another("memory://fifth")
    opened = [app.backend]
    asked, again = threading.Event(), threading.Event()

    def look() -> None:
        opened.append(app.backend)
        asked.set()
        again.wait(10)
        opened.append(app.backend)

    thread = threading.Thread(target=look)
    thread.start()
    assert asked.wait(10)
    setup(app)
    again.set()
    thread.join(10)

    assert [type(each) is RedisBackend for each in opened] == [False, False, True]
    assert type(app.backend) is RedisBackend


def test_a_pickled_app_is_set_up_where_it_arrives(another: Any) -> None:
    """Backend, results and task class are as they were."""
    app = setup(another("memory://sixth"))
    copy = pickle.loads(pickle.dumps(app))

    assert type(copy.backend) is RedisBackend
    assert issubclass(copy.Task, StatefulTask)
    assert copy.AsyncResult.__mro__[1] is app.AsyncResult.__mro__[1]

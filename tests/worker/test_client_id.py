"""Whose task it is: ``client_id`` in headers, record, and all that follows from a task."""

from __future__ import annotations

import pytest
from celery import chain, chord, group
from celery import signals as celery_signals

from celery_statekit import StatefulTask, signals
from celery_statekit.errors import InvalidId


@pytest.fixture
def place():
    """One pool and store will do: what is tested here depends on neither."""
    return "threads", "memory"


@pytest.fixture
def headers():
    """The headers of every message published, by the task's name."""
    published = []

    def note(sender, headers, properties, **_):
        published.append((sender, dict(headers), dict(properties)))

    # After ours, which was connected when the library was imported.
    celery_signals.before_task_publish.connect(note)
    yield published
    celery_signals.before_task_publish.disconnect(note)


@pytest.fixture
def whose(app):
    """A task that says whose it is."""

    @app.task(bind=True, base=StatefulTask, name="shop.whose")
    def whose(self, *_):
        return (self.request.headers or {}).get("client_id")

    return whose


def test_reaches_headers_record_and_history(whose, work, ended, headers):
    """``client_id`` travels in the message's headers, and stands in record and history."""
    work()
    result = whose.apply_async(client_id="c-7")
    assert result.task_state.client_id == "c-7"
    assert ended(result).client_id == "c-7"
    assert result.get() == "c-7"
    assert {change.client_id for change in result.history()} == {"c-7"}
    ((_, sent, properties),) = headers
    assert sent["client_id"] == "c-7"
    assert "client_id" not in properties


def test_task_without_a_client_has_none(whose, work, ended):
    """A task that nobody gave a client has the empty one."""
    work()
    result = whose.delay()
    assert ended(result).client_id == ""
    assert result.get() is None


def test_sent_by_name(app, whose, work, ended):
    """``app.send_task(client_id=...)`` does the same, though Celery makes it a property."""
    work()
    result = whose.AsyncResult(app.send_task("shop.whose", client_id="c-7").id)
    assert ended(result).client_id == "c-7"
    assert result.get() == "c-7"


def test_set_on_a_signature(whose, work, ended):
    """``sig.set(client_id=...)`` does the same."""
    work()
    result = whose.s().set(client_id="c-7").delay()
    assert ended(result).client_id == "c-7"


def test_survives_a_retry(app, work, ended):
    """The next attempt has the same client."""
    seen = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        seen.append((self.request.headers or {}).get("client_id"))
        if not self.request.retries:
            raise self.retry(countdown=0)

    work()
    assert ended(load.apply_async(client_id="c-7")).client_id == "c-7"
    assert seen == ["c-7", "c-7"]


def test_reaches_tasks_that_the_task_sends(app, whose, work, ended):
    """What a task sends belongs to the same client, unless it says another."""

    @app.task(base=StatefulTask)
    def load():
        return whose.delay().id, whose.apply_async(client_id="other").id

    work()
    result = load.apply_async(client_id="c-7")
    ended(result)
    inherited, own = (whose.AsyncResult(id) for id in result.get())
    assert ended(inherited).client_id == "c-7"
    assert ended(own).client_id == "other"


def test_reaches_plain_tasks_too(app, work, until):
    """A task of Celery's own class, sent by one of ours, carries the client in its headers."""

    @app.task(bind=True, name="shop.plain")
    def plain(self):
        return (self.request.headers or {}).get("client_id")

    @app.task(base=StatefulTask)
    def load():
        return plain.delay().id

    work()
    result = load.apply_async(client_id="c-7")
    until(result.ready)
    theirs = plain.AsyncResult(result.get())
    until(theirs.ready)
    assert theirs.get() == "c-7"


def test_reaches_every_step_of_a_chain(whose, work, ended):
    """``chain(...).apply_async(client_id=...)`` reaches all steps."""
    work()
    result = chain(whose.s(), whose.s(), whose.s()).apply_async(client_id="c-7")
    ended(result)
    steps = [result, result.parent, result.parent.parent]
    assert [step.get() for step in steps] == ["c-7"] * 3
    assert [step.task_state.client_id for step in steps] == ["c-7"] * 3


def test_reaches_every_member_of_a_group(whose, work, until):
    """``group(...).apply_async(client_id=...)`` reaches all members."""
    work()
    results = group(whose.s() for _ in range(3)).apply_async(client_id="c-7")
    until(results.ready)
    assert [result.get() for result in results] == ["c-7"] * 3
    assert [result.task_state.client_id for result in results] == ["c-7"] * 3


def test_reaches_members_and_body_of_a_chord(whose, work, ended):
    """``chord(...).apply_async(client_id=...)`` reaches the header and the body."""
    work()
    result = chord([whose.s(), whose.s()], whose.s()).apply_async(client_id="c-7")
    assert ended(result).client_id == "c-7"
    assert result.get() == "c-7"
    assert [member.task_state.client_id for member in result.parent] == ["c-7"] * 2


def test_reaches_links(app, whose, work, until):
    """A callback linked to a task has the task's client."""
    linked = []

    @app.task(bind=True, base=StatefulTask)
    def after(self, _):
        linked.append(self.task_state.client_id)

    work()
    whose.apply_async(link=after.s(), client_id="c-7")
    until(lambda: linked)
    assert linked == ["c-7"]


def test_reaches_the_task_that_replaces_it(app, whose, work, ended):
    """``self.replace`` goes on with the same client."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        raise self.replace(whose.s())

    work()
    result = load.apply_async(client_id="c-7")
    assert ended(result).client_id == "c-7"
    assert result.get() == "c-7"


def test_two_clients_do_not_mix(whose, work, ended):
    """What runs after a client's task in the same thread is not that client's."""
    work()
    first = whose.apply_async(client_id="c-7")
    ended(first)
    results = [whose.delay() for _ in range(6)]
    assert [ended(result).client_id for result in results] == [""] * 6


@pytest.mark.parametrize("nonsense", [7, "", "x" * 300, "two\nlines", b"bytes", "zero\u200bwidth"])
def test_what_cannot_name_a_client_is_refused(whose, hear, nonsense):
    """An id that no client may have is an error where the task is published, and nothing is sent."""
    heard = hear(signals.state_changed)
    with pytest.raises(InvalidId):
        whose.apply_async(client_id=nonsense)
    assert heard == []

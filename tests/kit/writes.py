"""Every public write, as the crash points see it: what comes before it, and what it does."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from celery_statekit import Clients, ClientState, States
from celery_statekit.attempt import Attempt
from celery_statekit.breaker import Breaker
from celery_statekit.clients import Actor
from celery_statekit.errors import NoSuchClient, StoreError
from celery_statekit.posted import PostedTask
from celery_statekit.record import TaskState
from celery_statekit.states import Flow, task_flow
from celery_statekit.stores import Store
from celery_statekit.testing import FailsAt
from celery_statekit.tracker import Tracker


class Loading(States):
    READING = "Reading"
    WRITING = "Writing"


class Basket(ClientState, states=Loading):
    items: list[str] = []


FLOW = task_flow(Flow.of(Loading))
TASK = "shop.load"


@dataclass
class Case:
    """One task and one client, at a store of which a call may be told to fail."""

    store: Store
    prefix: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    attempt: Attempt = field(init=False)

    def __post_init__(self) -> None:
        self.failing = FailsAt(self.store, 0)
        self.tracker = Tracker(self.failing, prefix=self.prefix)
        self.clients = Clients(
            self.failing, Basket, prefix=self.prefix, actor=Actor(task=TASK, task_id=self.id)
        )

    def arm(self, n: int, **words: Any) -> None:
        """Let the n-th call from now on fail."""
        failing = FailsAt(self.store, n, **words)
        self.failing.__dict__.update(
            {
                name: vars(failing)[name]
                for name in ("n", "until", "mode", "after", "calls", "fired")
            }
        )

    def heal(self) -> None:
        """No call fails any more, and nobody waits until the store is asked again."""
        self.arm(0)
        self.tracker.breaker = Breaker(self.store.name)

    def claim(self) -> None:
        self.attempt = Attempt.of(self.tracker, self.id, TASK, FLOW)
        self.attempt.claim()

    def seen(self) -> tuple[Any, ...]:
        """What anybody can see of task and client, but for the time; checked to be of a piece."""
        tracker = Tracker(self.store, prefix=self.prefix)
        record = self.store.read(tracker.key(self.id))
        # Not the tracker's own read: that hides an end which is kept though it was forgotten.
        task = TaskState(id=self.id) if record is None else TaskState.from_record(record)
        progress = task.progress and (task.progress.current, task.progress.message)
        error = tuple((task.error or {}).items())
        moves = whole(self.store, tracker.key(self.id), task.changes, task.state)
        asked = task.asked and (task.asked.what, task.asked.by)
        seen = (
            task.state, task.attempt, task.losses, progress, error, asked, task.forgotten, moves,
        )  # fmt: skip
        clients = Clients(self.store, Basket, prefix=self.prefix)
        try:
            basket = clients.get(self.id)
        except NoSuchClient:
            assert clients.history(self.id) == []
            return (*seen, None)
        client_moves = [(c.from_state, c.to_state) for c in clients.history(self.id)]
        if client_moves:
            assert client_moves[-1][1] == basket.state
        return (*seen, (basket.state, tuple(basket.items), tuple(client_moves)))


def whole(store: Store, key: str, changes: int, state: str) -> tuple[tuple[str, str], ...]:
    """The moves of a key, which are as many as its record says and lead to where it stands."""
    history = store.history(key)
    assert [change.number for change in history] == list(range(1, changes + 1))
    for earlier, later in pairwise(history):
        assert earlier.to_state == later.from_state
        assert earlier.version < later.version
    if history:
        assert history[-1].to_state == state
    return tuple((change.from_state, change.to_state) for change in history)


def _put(basket: Basket) -> None:
    basket.items.append("book")


def _move(basket: Basket) -> None:
    basket.items.append("book")
    basket.enter("WRITING")


def _exclusive(case: Case) -> None:
    with case.clients.exclusive(case.id, seconds=0.1) as basket:
        _move(basket)


def _progress(case: Case) -> None:
    case.attempt.reporter.set(3, 4, "three of four")
    case.attempt.report()


def _queue(case: Case) -> None:
    case.tracker.queue(case.id, TASK)


def _post(case: Case) -> None:
    """As a publisher does it where the store can post; elsewhere it is :func:`_queue`."""
    case.tracker.read(case.id)  # from here on there is something to post by
    posted = PostedTask.of(case.tracker, case.id, TASK)
    try:
        written = posted is not None and posted.is_written(5.0)
    except StoreError:
        written = posted is not None and posted.settle()
    if not written:
        _queue(case)


def _lose(case: Case) -> None:
    case.tracker.lose(case.id, lambda _: True, reason="by hand")


def _queue_again(case: Case) -> None:
    case.tracker.queue_again(case.tracker.read(case.id), reason="by hand")


def _create(case: Case) -> None:
    case.clients.create(case.id)


@dataclass(frozen=True)
class Write:
    """One public write."""

    name: str
    act: Callable[[Case], object]
    before: tuple[Callable[[Case], object], ...] = ()
    #: Whether who repeats it, not knowing that it was applied, applies it again.
    adds_up: bool = False

    def case(self, store: Store, prefix: str) -> Case:
        """A task and a client that stand where this write begins."""
        case = Case(store, prefix)
        for step in self.before:
            step(case)
        return case


ERROR = {"type": "ValueError", "message": "no"}
RUNNING = (_queue, Case.claim)

WRITES = (
    Write("publish", _queue),
    Write("publish without waiting", _post),
    Write("unpublish", lambda case: case.tracker.unqueue(case.id), (_queue,)),
    Write("claim", Case.claim, (_queue,), adds_up=True),
    Write("claim unpublished", Case.claim, adds_up=True),
    Write("claim again", Case.claim, RUNNING, adds_up=True),
    Write("enter", lambda case: case.attempt.enter("READING"), RUNNING),
    Write("progress", _progress, RUNNING),
    Write("retry", lambda case: case.attempt.leave("RETRY", error=ERROR), RUNNING),
    Write("success", lambda case: case.attempt.leave("SUCCESS"), RUNNING),
    Write("failure", lambda case: case.attempt.leave("FAILURE", error=ERROR), RUNNING),
    Write(
        "revoke",
        lambda case: case.tracker.end_from_outside(case.id, TASK, "REVOKED", reason="by hand"),
        (_queue,),
    ),
    Write(
        "revoke a run",
        lambda case: case.tracker.end_from_outside(case.id, TASK, "REVOKED", reason="by hand"),
        RUNNING,
    ),
    Write("lose", _lose, RUNNING),
    Write("queue again", _queue_again, (*RUNNING, _lose)),
    Write("cancel", lambda case: case.tracker.ask(case.id, "cancel", by="ada"), (_queue,)),
    Write("cancel a run", lambda case: case.tracker.ask(case.id, "cancel", by="ada"), RUNNING),
    Write("pause", lambda case: case.tracker.ask(case.id, "pause", by="ada"), RUNNING),
    Write(
        "resume",
        lambda case: case.tracker.resume(case.id),
        (*RUNNING, lambda case: case.tracker.ask(case.id, "pause")),
    ),
    Write(
        "forget",
        lambda case: case.tracker.forget(case.id),
        (*RUNNING, lambda case: case.attempt.leave("SUCCESS")),
    ),
    Write("create", _create),
    Write("update", lambda case: case.clients.update(case.id, _put), (_create,), adds_up=True),
    Write("update and move", lambda case: case.clients.update(case.id, _move), (_create,)),
    Write(
        "update or create",
        lambda case: case.clients.update(case.id, _put, create=True),
        adds_up=True,
    ),
    Write("update once", lambda case: case.clients.update(case.id, _put, "buy"), (_create,)),
    Write("exclusive", _exclusive, (_create,)),
    Write("delete", lambda case: case.clients.delete(case.id), (_create,)),
)

"""Whatever is done in whatever order, the stores hold what a dictionary would."""

from __future__ import annotations

import tempfile
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from celery_statekit import Clients
from celery_statekit.clients import Actor
from celery_statekit.errors import (
    ClientExists,
    ContentionTimeout,
    IllegalTransition,
    LeaseLost,
    NoSuchClient,
    StoreUnavailable,
)
from celery_statekit.stores import MemoryStore, SQLiteStore, memory
from celery_statekit.testing import FailsAt, LosesReplies, ManualClock

from .orders import DEADLINE, Order, OrderStates

IDS = st.sampled_from(["o-1", "o-2", "o:1"])
STATES = st.sampled_from(OrderStates)
TASKS = st.sampled_from(["t-1", "t-2"])
ITEMS = st.lists(st.text(max_size=3), max_size=2)
#: Seconds that a block's lease lasts.
LEASE = 30.0


@dataclass
class Model:
    """What is known of one client."""

    items: list[str] = field(default_factory=list)
    count: int = 0
    state: str = "BASKET"
    moves: list[tuple[str, str]] = field(default_factory=list)
    once: set[tuple[str, str]] = field(default_factory=set)

    def entered(self, state: OrderStates) -> Model:
        """The client after a move."""
        return replace(self, state=state.name, moves=[*self.moves, (self.state, state.name)])


class Machine(RuleBasedStateMachine):
    """One store, and a dictionary that knows better."""

    store: MemoryStore | SQLiteStore

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.model: dict[str, Model] = {}

    def clients(self, task_id: str = "", store: Any = None) -> Clients[Order]:
        """The orders, as a task updates them."""
        actor = Actor(task_id=task_id)
        return Clients(store or self.store, Order, actor=actor, deadline=DEADLINE)

    @rule(id=IDS, items=ITEMS)
    def create(self, id: str, items: list[str]) -> None:
        if id in self.model:
            with pytest.raises(ClientExists):
                self.clients().create(id, items=items)
        else:
            self.clients().create(id, items=items)
            self.model[id] = Model(items=items)

    @rule(id=IDS, item=st.text(max_size=3))
    def append(self, id: str, item: str) -> None:
        def change(order: Order) -> None:
            order.items.append(item)
            order.count += 1

        if id not in self.model:
            with pytest.raises(NoSuchClient):
                self.clients().update(id, change)
        else:
            model = self.model[id]
            returned = self.clients().update(id, change)
            self.model[id] = replace(model, items=[*model.items, item], count=model.count + 1)
            self.same(id, returned)

    @rule(id=IDS)
    def begin(self, id: str) -> None:
        model = self.model.get(id, Model())
        self.clients().update(id, count, create=True)
        self.model[id] = replace(model, count=model.count + 1)

    @rule(id=IDS, state=STATES, alone=st.booleans())
    def move(self, id: str, state: OrderStates, alone: bool) -> None:
        if id not in self.model:
            return
        allowed = state.name in Order.flow().allowed(self.model[id].state)
        try:
            if alone:
                with self.clients().exclusive(id, LEASE) as order:
                    order.enter(state)
            else:
                self.clients().update(id, lambda order: order.enter(state))
        except IllegalTransition:
            assert not allowed
        else:
            assert allowed
            self.model[id] = self.model[id].entered(state)

    @rule(id=IDS, task_id=TASKS, name=st.sampled_from(["a", "b"]))
    def named(self, id: str, task_id: str, name: str) -> None:
        if id not in self.model:
            return
        returned = self.clients(task_id).update(id, count, once=name)
        model = self.model[id]
        if (task_id, name) not in model.once:
            once = {*model.once, (task_id, name)}
            self.model[id] = replace(model, count=model.count + 1, once=once)
        self.same(id, returned)

    @rule(id=IDS, other=IDS, late=st.booleans(), delete=st.booleans())
    def overtaken(self, id: str, other: str, late: bool, delete: bool) -> None:
        """A block, and another who writes meanwhile, in time or after the lease's end."""
        if id not in self.model or other not in self.model:
            return
        hasty = Clients(self.store, Order, deadline=1e-9)
        before = self.model[id]
        try:
            with self.clients().exclusive(id, LEASE) as order:
                order.count += 1
                if late:
                    self.clock.advance(LEASE + 1)
                if delete and late:
                    hasty.delete(other)
                    del self.model[other]
                elif other == id and not late:
                    with pytest.raises(ContentionTimeout):
                        hasty.update(other, count)
                else:
                    hasty.update(other, count)
                    self.model[other] = replace(
                        self.model[other], count=self.model[other].count + 1
                    )
        except LeaseLost:
            assert late
            assert other == id
        else:
            assert not (late and other == id)
            self.model[id] = replace(before, count=before.count + 1)

    @rule(id=IDS)
    def give_up(self, id: str) -> None:
        if id not in self.model:
            return
        with pytest.raises(KeyError), self.clients().exclusive(id, LEASE) as order:
            order.count += 1
            raise KeyError

    @rule(id=IDS)
    def delete(self, id: str) -> None:
        assert self.clients().delete(id) is (id in self.model)
        self.model.pop(id, None)

    @rule(id=IDS, n=st.integers(1, 8), alone=st.booleans())
    def fail(self, id: str, n: int, alone: bool) -> None:
        """The n-th call of the store fails: applied, or not and told."""
        if id not in self.model:
            return
        failing = self.clients(store=FailsAt(self.store, n))
        try:
            if alone:
                with failing.exclusive(id, LEASE) as order:
                    count(order)
            else:
                failing.update(id, count)
        except StoreUnavailable:
            self.clock.advance(LEASE + 1)
        else:
            self.model[id] = replace(self.model[id], count=self.model[id].count + 1)
            self.clock.advance(LEASE + 1)

    @rule(id=IDS, every=st.integers(1, 3), alone=st.booleans(), applied=st.booleans())
    def lose(self, id: str, every: int, alone: bool, applied: bool) -> None:
        """A reply or a request is lost: nobody notices."""
        if id not in self.model or (every == 1 and not applied):
            return
        lossy = self.clients(store=LosesReplies(self.store, every, applied=applied))
        if alone:
            with lossy.exclusive(id, LEASE) as order:
                count(order)
        else:
            lossy.update(id, count)
        self.model[id] = replace(self.model[id], count=self.model[id].count + 1)

    @rule(seconds=st.floats(0.1, 100))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(state=STATES)
    def look(self, state: OrderStates) -> None:
        expected = sorted(id for id, model in self.model.items() if model.state == state.name)
        assert expected == sorted(order.client_id for order in self.clients().list(state))

    @invariant()
    def the_same(self) -> None:
        assert sorted(self.model) == sorted(order.client_id for order in self.clients().list())
        for id, model in self.model.items():
            self.same(id, self.clients().get(id))
            changes = self.clients().history(id)
            assert model.moves == [(change.from_state, change.to_state) for change in changes]
            assert list(range(1, len(changes) + 1)) == [change.number for change in changes]

    def same(self, id: str, order: Order) -> None:
        """The order is what the model says."""
        model = self.model[id]
        assert (id, model.items, model.count, model.state) == (
            order.client_id,
            order.items,
            order.count,
            order.state,
        )


def count(order: Order) -> None:
    order.count += 1


class MemoryMachine(Machine):
    @initialize()
    def open(self) -> None:
        self.store = MemoryStore(uuid.uuid4().hex, now=self.clock)

    def teardown(self) -> None:
        memory._shelves.pop(self.store.name.removeprefix("memory://"), None)


class SQLiteMachine(Machine):
    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = SQLiteStore(Path(self.folder.name, "states.db"), now=self.clock)

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSQLite = SQLiteMachine.TestCase
TestSQLite.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)

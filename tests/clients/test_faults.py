"""Stores that fail or lose replies: an update is applied once, or not at all and says so."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest

from celery_statekit import Clients
from celery_statekit.clients import Actor
from celery_statekit.errors import (
    AmbiguousWrite,
    NoSuchClient,
    StateRegressed,
    StoreFull,
    StoreUnavailable,
)
from celery_statekit.record import Change, Record
from celery_statekit.stores import MemoryStore, SQLiteStore, Store
from celery_statekit.stores.base import UNLABELLED, Labels
from celery_statekit.testing import FailsAt, LosesReplies, ManualClock

from .orders import DEADLINE, Order, OrderStates, add, pay


def add_and_pay(order: Order) -> None:
    """An update that moves, so that its change is part of the write."""
    add(order)
    pay(order)


def work_alone(orders: Clients[Order], id: str) -> None:
    """The same in an ``exclusive`` block."""
    with orders.exclusive(id) as order:
        add_and_pay(order)


@dataclass(frozen=True)
class Operation:
    """One call, and how its effect is seen."""

    run: Callable[[Clients[Order], str], object]
    #: How often it was applied.
    applied: Callable[[Clients[Order], str], int]
    #: Whether it needs a client that is stored.
    needs_client: bool = True


def count(orders: Clients[Order], id: str) -> int:
    """How often a client was updated, told alike by the client and its history."""
    order = orders.get(id)
    assert order.count == len(orders.history(id))
    assert ("PAID" if order.count else "BASKET") == order.state
    return order.count


def is_there(orders: Clients[Order], id: str) -> int:
    """1 where the client is stored."""
    try:
        return orders.get(id).items.count("book")
    except NoSuchClient:
        return 0


OPERATIONS = {
    "create": Operation(
        lambda orders, id: orders.create(id, items=["book"]),
        is_there,
        needs_client=False,
    ),
    "update": Operation(
        lambda orders, id: orders.update(id, add_and_pay),
        count,
    ),
    "update once": Operation(
        lambda orders, id: orders.update(id, add_and_pay, once="pay"),
        count,
    ),
    "update that makes": Operation(
        lambda orders, id: orders.update(id, lambda o: o.items.append("book"), create=True),
        is_there,
        needs_client=False,
    ),
    "exclusive": Operation(work_alone, count),
    "delete": Operation(
        lambda orders, id: orders.delete(id),
        lambda orders, id: 1 - is_there(orders, id),
    ),
}


@pytest.fixture(params=OPERATIONS.values(), ids=OPERATIONS.keys())
def operation(request: pytest.FixtureRequest) -> Operation:
    """Each call that writes."""
    operation: Operation = request.param
    return operation


# --- failing calls -------------------------------------------------------------------------------


@pytest.mark.parametrize("stays_down", [False, True], ids=["one call", "from then on"])
def test_a_store_that_fails_at_any_call(
    store: Store,
    orders: Clients[Order],
    clock: ManualClock,
    operation: Operation,
    stays_down: bool,
) -> None:
    """Whichever store call fails: StoreUnavailable and nothing applied, or all was applied."""
    items = [] if operation.applied is count else ["book"]
    for n in itertools.count(1):
        id = f"o-{n}"
        if operation.needs_client:
            orders.create(id, items=items)
        failing = FailsAt(store, n, until=10**9 if stays_down else 0)
        actor = Actor(task_id="t-1")

        try:
            operation.run(Clients(failing, Order, actor=actor, deadline=DEADLINE), id)
            expected = 1
        except StoreUnavailable:
            expected = 0

        assert expected == operation.applied(orders, id)
        if not failing.fired:
            break
        if not expected:
            # Whatever lease was left behind ends by itself, and the call may be made again.
            clock.advance(DEADLINE + 1)
            operation.run(Clients(store, Order, actor=actor, deadline=0.01), id)
            assert operation.applied(orders, id) == 1
    assert n > 1


def test_a_blocks_own_error_is_what_is_raised(store: Store, orders: Clients[Order]) -> None:
    """Where the store fails too while a block fails, the caller sees the block's exception."""
    orders.create("o-17")
    failing = FailsAt(store, 0)

    with (
        pytest.raises(KeyError, match="till"),
        Clients(failing, Order, deadline=DEADLINE).exclusive("o-17") as order,
    ):
        add(order)
        failing.n, failing.until = 1, 10**9
        raise KeyError("till")

    assert orders.get("o-17").count == 0


# --- lost replies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "applied"), [(1, True), (2, True), (3, True), (2, False), (3, False)]
)
def test_a_lost_reply_is_settled(
    store: Store, operation: Operation, orders: Clients[Order], every: int, applied: bool
) -> None:
    """Whether request or reply was lost, the caller does not notice, and it is applied once."""
    lossy = Clients(LosesReplies(store, every, applied=applied), Order, deadline=DEADLINE)

    for n in range(4):
        if operation.needs_client:
            orders.create(f"o-{n}")
        operation.run(lossy, f"o-{n}")
        assert operation.applied(orders, f"o-{n}") == 1


def test_many_lost_replies_in_a_row(store: Store, orders: Clients[Order]) -> None:
    """More updates than a record keeps ids of writes: each is applied once."""
    lossy = Clients(LosesReplies(store, every=1), Order, deadline=DEADLINE)
    lossy.create("o-17")

    for _ in range(50):
        lossy.update("o-17", add)

    assert orders.get("o-17").count == 50


@pytest.mark.parametrize(
    ("applied", "answers"), [(True, 0), (False, 0), (False, 1)], ids=["reply", "request", "later"]
)
@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - {"delete"}))
def test_what_cannot_be_settled_is_told(
    store: Store, orders: Clients[Order], name: str, applied: bool, answers: int
) -> None:
    """A call that cannot know its outcome says so: AmbiguousWrite, and never another reason."""
    operation = OPERATIONS[name]
    if operation.needs_client:
        orders.create("o-17")
    unsure = LosesReplies(store, every=1, applied=applied)
    failing = FailsAt(unsure, 0)
    write = unsure.write

    def write_and_fail(*args: object, **kwargs: object) -> bool:
        # After so many answers nothing answers any more, so it can be neither seen nor repeated.
        failing.n, failing.until = failing.calls + answers + 1, 10**9
        return write(*args, **kwargs)  # type: ignore[arg-type]

    unsure.write = write_and_fail  # type: ignore[method-assign]

    with pytest.raises(AmbiguousWrite):
        operation.run(Clients(failing, Order, deadline=DEADLINE), "o-17")


class Late:
    """A store whose first write is on its way for long: given up, and applied after all.

    Args:
        store: the real one.
        lag: how many further calls are answered before it arrives.
    """

    def __init__(self, store: MemoryStore | SQLiteStore, lag: int) -> None:
        self.name = store.name
        self.limits = store.limits
        self.close = store.close
        self.acquire = store.acquire
        self.release = store.release
        self._store = store
        self._lag = lag
        self._given_up = False
        self._late: list[Callable[[], bool]] = []

    def write(
        self,
        record: Record,
        *,
        expect: Record | None,
        changes: Sequence[Change] = (),
        ttl: float | None = None,
        labels: Labels = UNLABELLED,
    ) -> bool:
        """As the store does; the first one is late."""
        write = partial(
            self._store.write, record, expect=expect, changes=changes, ttl=ttl, labels=labels
        )
        if not self._given_up:
            self._given_up = True
            self._late.append(write)
            raise AmbiguousWrite(self.name, "no answer in time, on purpose")
        return self._answer(write)

    def read(self, key: str) -> Record | None:
        """As the store does."""
        return self._answer(partial(self._store.read, key))

    def history(self, key: str, after: int = 0, limit: int = 100) -> list[Change]:
        """As the store does."""
        return self._store.history(key, after, limit)

    def delete(self, key: str) -> bool:
        """As the store does."""
        return self._store.delete(key)

    def _answer(self, call: Callable[[], object]) -> object:
        if self._lag == 0:
            self.arrive()
        self._lag -= 1
        return call()

    def arrive(self) -> None:
        """Apply what is still on its way."""
        while self._late:
            self._late.pop()()


@pytest.mark.parametrize("lag", range(5))
def test_a_write_that_arrives_late_is_applied_once(
    store: MemoryStore | SQLiteStore, orders: Clients[Order], operation: Operation, lag: int
) -> None:
    """A request that was given up and arrives after all is not applied beside a second one."""
    if operation.needs_client:
        orders.create("o-17")
    late = Late(store, lag)

    operation.run(Clients(late, Order, deadline=DEADLINE), "o-17")
    late.arrive()

    assert operation.applied(orders, "o-17") == 1


def test_a_late_write_among_others(
    store: MemoryStore | SQLiteStore, orders: Clients[Order]
) -> None:
    """Also when others write in between, so that the late one may come first, last or never."""
    for lag in range(6):
        id = f"o-{lag}"
        orders.create(id)
        late = Late(store, lag)
        others = iter(range(2))

        def change(order: Order, id: str = id, others: object = others) -> None:
            if next(others, None) is not None:  # type: ignore[call-overload]
                orders.update(id, lambda order: order.items.append("book"))
            order.enter(OrderStates.PAID if order.state == "BASKET" else OrderStates.SHIPPED)
            order.count += 1

        Clients(late, Order, deadline=DEADLINE).update(id, change)
        late.arrive()

        assert Order(id, items=["book"] * 2, count=1).to_dict() | {"state": "PAID"} == (
            orders.get(id).to_dict()
        )
        assert len(orders.history(id)) == 1


# --- what is told --------------------------------------------------------------------------------


def test_an_ambiguous_update_with_a_name_is_repeated_safely(
    store: Store, orders: Clients[Order]
) -> None:
    """After AmbiguousWrite the same update under the same ``once`` is applied once, if it was not."""
    for applied, reply in itertools.product([True, False], repeat=2):
        id = f"o-{applied}-{reply}"
        orders.create(id)
        unsure = LosesReplies(store, every=1, applied=applied)
        silent = FailsAt(unsure, 3, 10**9)  # read, write, and then no answer to any question
        actor = Actor(task_id="t-1")
        with pytest.raises(AmbiguousWrite, match="safe to repeat") as caught:
            Clients(silent, Order, actor=actor, deadline=DEADLINE).update(id, add, once="charge")
        record = store.read(orders.key(id))

        again = Clients(store, Order, actor=actor, deadline=DEADLINE)
        for _ in range(2):
            assert again.update(id, add, once="charge").count == 1

        assert record is not None
        assert (caught.value.write in record.writes) is applied
        assert orders.get(id).count == 1


@pytest.mark.parametrize("name", ["update", "update once", "exclusive"])
def test_a_store_that_is_full_changes_nothing(
    store: MemoryStore | SQLiteStore,
    orders: Clients[Order],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """StoreFull reaches the caller, the client stands as it stood, and is used again later."""
    orders.create("o-17")
    before = store.read(orders.key("o-17"))

    def full(record: Record, **_: object) -> bool:
        raise StoreFull(store.name, "no room, on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", full)
        with pytest.raises(StoreFull):
            OPERATIONS[name].run(orders, "o-17")

    assert store.read(orders.key("o-17")) == before
    OPERATIONS[name].run(orders, "o-17")
    assert OPERATIONS[name].applied(orders, "o-17") == 1


@pytest.mark.parametrize("name", ["update", "update once", "exclusive"])
def test_a_store_that_goes_back_is_told_of(
    store: MemoryStore | SQLiteStore, orders: Clients[Order], name: str
) -> None:
    """A call that finds an older version than it read says so, and applies nothing."""
    orders.create("o-17")
    orders.update("o-17", lambda order: order.items.append("book"))
    key = orders.key("o-17")
    reads: list[Record | None] = []

    class GoesBack:
        """Another wins every race; and then the store is what it was a version before."""

        def __init__(self) -> None:
            self.name, self.limits, self.close = store.name, store.limits, store.close
            self.acquire, self.release = store.acquire, store.release
            self.history, self.delete = store.history, store.delete

        def write(self, record: Record, **_: object) -> bool:
            return False

        def read(self, key: str) -> Record | None:
            record = store.read(key)
            assert record is not None
            reads.append(record if not reads else replace(record, version=record.version - 1))
            return reads[-1]

    with pytest.raises(StateRegressed) as caught:
        OPERATIONS[name].run(Clients(GoesBack(), Order, deadline=DEADLINE), "o-17")

    assert (caught.value.key, caught.value.held, caught.value.found) == (key, 2, 1)
    assert orders.get("o-17") == Order("o-17", items=["book"])


def test_who_watches_is_told_that_the_store_went_back(
    store: MemoryStore | SQLiteStore, orders: Clients[Order]
) -> None:
    """An older version is never shown as news; what is there then is the start of the next watch."""
    orders.create("o-17")
    older = store.read(orders.key("o-17"))
    assert older is not None
    orders.update("o-17", add)
    watch = orders.watch("o-17", timeout=DEADLINE)
    assert next(watch).count == 1
    store.delete(older.key)
    assert store.write(older, expect=None)

    with pytest.raises(StateRegressed):
        next(watch)
    assert next(orders.watch("o-17")).count == 0

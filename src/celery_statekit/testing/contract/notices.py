"""The contract of being told that something was written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from celery_statekit.errors import StoreUnavailable
from celery_statekit.record import Record
from celery_statekit.stores.base import Labels, Notifies, Store
from celery_statekit.testing.contract.crowd import DEADLINE, in_child, in_threads
from celery_statekit.testing.contract.place import (
    KEY,
    KEYS,
    OTHER,
    NotifyingStore,
    Reopen,
    StoreFixtures,
    current,
    increment,
    written,
)


class Bell:
    """What a test subscribes with: rung by the store, waited for here."""

    def __init__(self) -> None:
        #: How often it was rung.
        self.rung = 0
        self._rings = threading.Event()

    def __call__(self) -> None:
        self.rung += 1
        self._rings.set()

    def wait(self) -> None:
        """Wait until it has been rung since the last time."""
        assert self._rings.wait(DEADLINE), "nobody was woken"
        self._rings.clear()


class NotifiesContract(StoreFixtures):
    """What a store that is also :class:`~celery_statekit.stores.base.Notifies` must do."""

    def test_it_notifies(self, store: NotifyingStore) -> None:
        """It has all that the protocol asks for."""
        assert isinstance(store, Notifies)

    def test_each_write_and_each_deletion_wakes(self, store: NotifyingStore) -> None:
        """The first version, later ones of whatever label, the end of a key and its new begin."""
        bell = Bell()
        store.subscribe(KEY, bell)
        first = written(store, Record.first(KEY, {"n": 1}), labels=Labels("A"))
        bell.wait()
        second = written(store, first.next({"n": 2}), first, labels=Labels("A"))
        bell.wait()
        written(store, second.next({"n": 3}), second, ttl=60.0, labels=Labels("B"))
        bell.wait()
        assert store.delete(KEY) is True
        bell.wait()
        written(store, Record.first(KEY, {"n": 1}))
        bell.wait()

    def test_a_key_that_begins_anew_at_once_wakes(self, store: NotifyingStore) -> None:
        """Though it is of the same version as before."""
        bell = Bell()
        written(store, Record.first(KEY, {}))
        store.subscribe(KEY, bell)
        for _ in range(3):
            store.delete(KEY)
            written(store, Record.first(KEY, {}))
            bell.wait()

    def test_what_was_written_can_be_read_when_it_wakes(self, store: NotifyingStore) -> None:
        """The hint comes after the write, not before."""
        seen: list[int] = []
        woken = threading.Event()

        def look() -> None:
            seen.append(current(store).version)
            woken.set()

        store.subscribe(KEY, look)
        record = Record.first(KEY, {})
        expect = None
        for _ in range(5):
            woken.clear()
            written(store, record, expect)
            assert woken.wait(DEADLINE)
            record, expect = record.next({}), record

        assert seen == sorted(seen)
        assert seen[-1] >= 1

    def test_it_wakes_from_the_return_of_subscribe_on(self, store: NotifyingStore) -> None:
        """Subscribed, written at once, woken; again and again, on old keys and new ones."""
        for number in range(10):
            bell, again = Bell(), Bell()
            end = store.subscribe(f"k{number}", bell)
            first = written(store, Record.first(f"k{number}", {}))
            bell.wait()
            end()
            end = store.subscribe(f"k{number}", again)
            written(store, first.next({}), first)
            again.wait()
            end()

    def test_other_keys_do_not_matter(self, store: NotifyingStore) -> None:
        """Who waits for one key is not woken by each write of another."""
        bell, other = Bell(), Bell()
        store.subscribe(KEY, bell)
        store.subscribe(OTHER, other)
        record = written(store, Record.first(OTHER, {}))
        other.wait()
        for _ in range(10):
            record = written(store, record.next({}), record)
            other.wait()

        # Once or twice it may come for nothing.
        assert bell.rung < 5
        written(store, Record.first(KEY, {}))
        bell.wait()

    def test_keys_of_every_kind_wake(self, store: NotifyingStore) -> None:
        """Each its own subscriber, whatever stands in it."""
        bells = {key: Bell() for key in KEYS}
        for key, bell in bells.items():
            store.subscribe(key, bell)
        for key in KEYS:
            written(store, Record.first(key, {}))

        for bell in bells.values():
            bell.wait()

    def test_another_process_wakes_us(self, store: NotifyingStore, reopen: Reopen) -> None:
        """By a write and by a deletion, through a store object of its own."""
        bell = Bell()
        store.subscribe(KEY, bell)
        record = Record.first(KEY, {})

        def elsewhere(act: Callable[[Store], bool]) -> None:
            def work(_: int) -> bool:
                with closing(reopen()) as own:
                    return act(own)

            assert self.at_once(1, work) == [True]
            bell.wait()

        elsewhere(lambda own: own.write(record, expect=None))
        elsewhere(lambda own: own.write(record.next({}), expect=record))
        elsewhere(lambda own: own.delete(KEY))

    def test_who_has_unsubscribed_is_not_woken(self, store: NotifyingStore) -> None:
        """It alone; to unsubscribe twice is allowed."""
        ended, kept = Bell(), Bell()
        end = store.subscribe(KEY, ended)
        store.subscribe(KEY, kept)
        end()
        end()
        record = written(store, Record.first(KEY, {}))
        kept.wait()
        written(store, record.next({}), record)
        kept.wait()

        assert ended.rung == 0

    def test_who_subscribes_twice_has_two_subscriptions(self, store: NotifyingStore) -> None:
        """The end of one is not the end of the other, though both wake the same."""
        bell = Bell()
        end = store.subscribe(KEY, bell)
        store.subscribe(KEY, bell)
        end()
        end()
        written(store, Record.first(KEY, {}))

        bell.wait()

    def test_subscriptions_may_end_while_they_wake(self, store: NotifyingStore) -> None:
        """A subscriber that wanted one wake ends it there."""
        bell, kept = Bell(), Bell()
        ends: list[Callable[[], None]] = []

        def once() -> None:
            ends[0]()
            bell()

        ends.append(store.subscribe(KEY, once))
        store.subscribe(KEY, kept)
        record = written(store, Record.first(KEY, {}))
        bell.wait()
        kept.wait()
        written(store, record.next({}), record)
        kept.wait()

    def test_many_subscribers(self, store: NotifyingStore) -> None:
        """All are woken, and they cost no thread each."""
        before = threading.active_count()
        bells = [Bell() for _ in range(60)]
        for number, bell in enumerate(bells):
            store.subscribe(f"k{number % 20}", bell)
        threads = threading.active_count() - before
        for number in range(20):
            written(store, Record.first(f"k{number}", {}))
        for bell in bells:
            bell.wait()

        assert threads <= 2

    def test_subscribers_come_and_go_in_many_threads(self, store: NotifyingStore) -> None:
        """None is missed and none disturbs another, while the key is written all the time."""
        written(store, Record.first(KEY, {"n": 0}))
        stop = threading.Event()

        def come_and_go() -> None:
            for _ in range(8):
                bell = Bell()
                end = store.subscribe(KEY, bell)
                bell.wait()
                end()

        def write() -> None:
            while not stop.wait(0.002):
                increment(store, 1, 0)

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        try:
            in_threads(3, lambda _: come_and_go())
        finally:
            stop.set()
            writer.join(DEADLINE)

    def test_who_subscribes_and_then_reads_misses_nothing(
        self, store: NotifyingStore, reopen: Reopen
    ) -> None:
        """Woken after each write that it has not read yet: asking again and again is needless.

        The last write of a key waits for those who follow it: else it might be there before them.
        """

        def work(by: int) -> None:
            with closing(reopen()) as own:
                for number in range(10):
                    key, here = f"k{number}", f"here{number}"
                    if by == 0:
                        increment(own, 9, 0, key)
                        _follow(own, here, until=2)
                        increment(own, 1, 0, key)
                    else:
                        increment(own, 1, by, here)
                        _follow(own, key, until=10)

        for number in range(10):
            written(store, Record.first(f"k{number}", {"n": 0}))
            written(store, Record.first(f"here{number}", {"n": 0}))
        self.at_once(3, work)

    def test_a_subscriber_that_raises_hurts_nobody(self, store: NotifyingStore) -> None:
        """Neither the writer nor other subscribers, nor itself the next time."""
        raised, bell = Bell(), Bell()

        def breaks() -> None:
            raised()
            raise RuntimeError("on purpose")

        store.subscribe(KEY, breaks)
        store.subscribe(KEY, bell)
        record = written(store, Record.first(KEY, {}))
        bell.wait()
        raised.wait()
        written(store, record.next({}), record)
        bell.wait()
        raised.wait()

    def test_parent_and_child_are_woken_after_a_fork(self, store: NotifyingStore) -> None:
        """Who was subscribed in the parent still is; a child subscribes for itself."""
        bell = Bell()
        store.subscribe(KEY, bell)
        record = written(store, Record.first(KEY, {"n": 0}))
        bell.wait()

        def work() -> int:
            own = Bell()
            end = store.subscribe(KEY, own)
            increment(store, 1, 1)
            own.wait()
            end()
            return own.rung

        if self.shared_between_processes:
            assert in_child(work) > 0
            bell.wait()
            record = current(store)
        written(store, record.next({"n": 2}), record)
        bell.wait()

    def test_a_closed_store_wakes_nobody(self, store: NotifyingStore, reopen: Reopen) -> None:
        """Subscribing is StoreUnavailable; to unsubscribe is allowed; other stores go on."""
        closed = reopen()
        assert isinstance(closed, Notifies)
        silent, bell = Bell(), Bell()
        end = closed.subscribe(KEY, silent)
        store.subscribe(KEY, bell)
        closed.close()
        record = written(store, Record.first(KEY, {}))
        bell.wait()
        end()
        written(store, record.next({}), record)
        bell.wait()

        assert silent.rung == 0
        with pytest.raises(StoreUnavailable):
            closed.subscribe(KEY, bell)


def _follow(store: Store, key: str, until: int) -> None:
    """Read whenever woken until ``n`` is ``until``."""
    assert isinstance(store, Notifies)
    bell = Bell()
    end = store.subscribe(key, bell)
    while current(store, key).document["n"] < until:
        bell.wait()
    end()

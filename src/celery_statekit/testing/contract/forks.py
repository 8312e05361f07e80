"""The contract of forks."""

from __future__ import annotations

import multiprocessing
import threading
from contextlib import closing

from celery_statekit.record import Record
from celery_statekit.stores.base import Store
from celery_statekit.testing.contract.crowd import DEADLINE, in_child
from celery_statekit.testing.contract.place import (
    KEY,
    OTHER,
    Reopen,
    StoreFixtures,
    a_change,
    current,
    increment,
    numbers,
    why_unavailable,
    written,
)


class ForksContract(StoreFixtures):
    """A process forked while the store is open, in use or not yet used."""

    def test_parent_and_child_go_on_after_a_fork(self, store: Store) -> None:
        """A store that was in use works in a forked child, or says there why it cannot."""
        first = written(store, Record.first(KEY, {"n": 1}), changes=[a_change(1)])
        second = first.next({"n": 2})

        if not self.shared_between_processes:
            assert "process" in in_child(lambda: why_unavailable(lambda: store.read(KEY)))
            assert store.write(second, expect=first) is True
            return
        assert in_child(lambda: store.write(second, expect=current(store), changes=[a_change(2)]))
        assert store.read(KEY) == second
        assert store.write(second.next({"n": 3}), expect=second, changes=[a_change(3)]) is True
        assert numbers(store) == [1, 2, 3]

    def test_a_store_never_used_may_be_forked(self, reopen: Reopen) -> None:
        """Opening in the parent and calling first in the child is what prefork servers do."""
        with closing(reopen()) as store:
            if not self.shared_between_processes:
                assert "process" in in_child(lambda: why_unavailable(lambda: store.read(KEY)))
                return
            assert in_child(lambda: store.write(Record.first(KEY, {"n": 1}), expect=None)) is True
            assert current(store).document == {"n": 1}

    def test_a_child_does_not_depend_on_its_parent(self, reopen: Reopen) -> None:
        """What a child writes after its parent has closed the store is there for everyone."""
        store = reopen()
        first = written(store, Record.first(KEY, {"n": 0}))
        if not self.shared_between_processes:
            store.close()
            assert in_child(lambda: why_unavailable(lambda: store.read(KEY)))
            return
        second = first.next({"n": 1})
        third = second.next({"n": 2})
        here, there = multiprocessing.get_context("fork").Pipe()

        def work() -> None:
            there.send(store.write(second, expect=first))
            assert there.poll(DEADLINE)
            there.send(store.write(third, expect=second))

        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        try:
            assert here.poll(DEADLINE)
            assert here.recv() is True
            store.close()
            here.send("closed")
            assert here.poll(DEADLINE)
            assert here.recv() is True
            child.join(DEADLINE)
        finally:
            child.kill()
            child.join()
            here.close()
            there.close()

        with closing(reopen()) as again:
            assert again.read(KEY) == third

    def test_forks_while_threads_are_busy(self, store: Store) -> None:
        """A fork in the middle of other threads' calls harms neither parent nor child."""
        written(store, Record.first(KEY, {"n": 0}))
        written(store, Record.first(OTHER, {"n": 0}))
        stop = threading.Event()
        busy = [threading.Thread(target=_keep_busy, args=(store, stop)) for _ in range(3)]
        for thread in busy:
            thread.start()
        try:
            told = [
                in_child(lambda: why_unavailable(lambda: increment(store, 2, 0, OTHER)))
                for _ in range(5)
            ]
        finally:
            stop.set()
            for thread in busy:
                thread.join(DEADLINE)

        if self.shared_between_processes:
            assert told == [""] * 5
            assert current(store, OTHER).document["n"] == 10
        else:
            assert ["process" in why for why in told] == [True] * 5
        record = current(store)
        assert record.version == record.document["n"] + 1


def _keep_busy(store: Store, stop: threading.Event) -> None:
    while not stop.is_set():
        increment(store, 1, 0)
        store.history(KEY, limit=5)

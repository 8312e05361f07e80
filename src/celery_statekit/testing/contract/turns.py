"""The contract of waiting for a lease: in order of coming, and nobody waits for the dead.

The pauses here are no waiting for an event: the protocol does not show who stands in the queue, so
that one has come is only made likely. A test that needs it tries again with longer ones.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Final

import pytest

from celery_statekit.errors import StoreUnavailable
from celery_statekit.record import Record
from celery_statekit.stores.base import Leases, Store
from celery_statekit.testing.contract.crowd import (
    DEADLINE,
    in_threads,
    patiently,
    with_growing_patience,
)
from celery_statekit.testing.contract.place import (
    KEY,
    OTHER,
    LeasingStore,
    Reopen,
    StoreFixtures,
    current,
    increment,
    written,
)

#: Seconds that those wait who will get the lease; longer than anybody may be passed over in.
PATIENCE: Final = 10.0


class _InterruptedError(Exception):
    """What a time limit raises inside a call."""


class TurnsContract(StoreFixtures):
    """Those who wait for a lease get it one after the other."""

    def test_who_need_not_wait_does_not(self, store: LeasingStore) -> None:
        """A lease that is free, or one's own, is given at once."""
        assert store.acquire(KEY, "a", self.ttl * 60, wait=PATIENCE) is True
        assert store.acquire(KEY, "a", self.ttl * 60, wait=PATIENCE) is True
        assert store.acquire(OTHER, "b", self.ttl * 60, wait=PATIENCE) is True

    def test_a_released_lease_goes_to_who_waits(self, store: LeasingStore) -> None:
        """It need not ask again, and holds it from then on."""
        store.acquire(KEY, "a", self.ttl * 60)
        with ThreadPoolExecutor() as pool:
            waits = pool.submit(store.acquire, KEY, "b", self.ttl * 60, PATIENCE)
            store.release(KEY, "a")

            assert waits.result(DEADLINE) is True
        assert store.acquire(KEY, "c", self.ttl) is False

    def test_a_lease_that_ends_goes_to_who_waits(
        self, store: LeasingStore, elapse: Callable[[float], None]
    ) -> None:
        """One after the other, where nobody gives it back."""
        store.acquire(KEY, "a", self.ttl)
        with ThreadPoolExecutor() as pool:
            for owner in "bc":
                waits = pool.submit(store.acquire, KEY, owner, self.ttl, PATIENCE)
                elapse(self.ttl * 1.1)

                assert waits.result(DEADLINE) is True

    @pytest.mark.parametrize("wait", [0.0, -1.0, 0.05])
    def test_waiting_in_vain(self, store: LeasingStore, wait: float) -> None:
        """It is refused when its time is over, and stands in nobody's way afterwards."""
        store.acquire(KEY, "a", self.ttl * 60)
        refused = [store.acquire(KEY, owner, self.ttl * 60, wait=wait) for owner in "bcb"]
        store.release(KEY, "a")

        assert refused == [False] * 3
        assert store.acquire(KEY, "d", self.ttl * 60) is True

    def test_who_gives_up_lets_those_behind_go_on(self, store: LeasingStore) -> None:
        """The ones behind keep their places."""
        store.acquire(KEY, "a", self.ttl * 60)
        with ThreadPoolExecutor() as pool:
            gives_up = pool.submit(store.acquire, KEY, "b", self.ttl * 60, 0.1)
            waits = pool.submit(store.acquire, KEY, "c", self.ttl * 60, PATIENCE)

            assert gives_up.result(DEADLINE) is False
            store.release(KEY, "a")
            assert waits.result(DEADLINE) is True

    def test_who_comes_while_others_wait_is_refused(self, store: LeasingStore) -> None:
        """A lease that is free, but awaited, is not free: nobody overtakes by good luck."""

        def nobody_overtakes(pause: float) -> bool:
            overtook = False
            for number in range(3):
                key = f"k{pause} {number}"
                store.acquire(key, "a", self.ttl * 60)
                with ThreadPoolExecutor() as pool:
                    waits = pool.submit(store.acquire, key, "b", self.ttl * 60, PATIENCE)
                    time.sleep(pause)
                    store.release(key, "a")
                    if store.acquire(key, "c", self.ttl * 60):
                        overtook = True
                        store.release(key, "c")
                    assert waits.result(DEADLINE) is True
            return not overtook

        with_growing_patience(nobody_overtakes)

    def test_who_waits_for_long_keeps_its_place(self, store: LeasingStore) -> None:
        """Only the dead are passed over, not those who have waited for more than a second."""

        def nobody_overtakes(key: str) -> bool:
            store.acquire(key, "a", self.ttl * 60)
            with ThreadPoolExecutor() as pool:
                waits = pool.submit(store.acquire, key, "b", self.ttl * 60, PATIENCE)
                time.sleep(1.3)  # longer than one who says nothing counts as alive
                store.release(key, "a")
                overtook = store.acquire(key, "c", self.ttl * 60)
                store.release(key, "c")
                assert waits.result(DEADLINE) is True
            return not overtook

        # One that gets no time to run for a second is as good as dead.
        assert any(nobody_overtakes(f"k{number}") for number in range(3))

    def test_who_held_it_before_goes_behind(
        self, store: LeasingStore, elapse: Callable[[float], None]
    ) -> None:
        """Once a lease has ended its holder is one of many."""

        def it_goes_behind(pause: float) -> bool:
            key = f"k{pause}"
            store.acquire(key, "a", self.ttl)
            with ThreadPoolExecutor() as pool:
                waits = pool.submit(store.acquire, key, "b", self.ttl * 60, PATIENCE)
                time.sleep(pause)
                elapse(self.ttl * 1.1)
                again = store.acquire(key, "a", self.ttl * 60)
                store.release(key, "a")
                assert waits.result(DEADLINE) is True
            return not again

        with_growing_patience(it_goes_behind)

    def test_a_holder_renews_while_others_wait(self, store: LeasingStore) -> None:
        """Those who wait take nothing away from who holds it."""
        store.acquire(KEY, "a", self.ttl * 60)
        with ThreadPoolExecutor() as pool:
            waits = pool.submit(store.acquire, KEY, "b", self.ttl * 60, PATIENCE)
            time.sleep(0.1)  # it has come by then, where it can
            renewed = [store.acquire(KEY, "a", self.ttl * 60) for _ in range(10)]
            store.release(KEY, "a")

            assert renewed == [True] * 10
            assert waits.result(DEADLINE) is True

    def test_those_who_wait_for_another_key_are_in_nobodys_way(self, store: LeasingStore) -> None:
        """Each key has a queue of its own."""
        store.acquire(KEY, "a", self.ttl * 60)
        with ThreadPoolExecutor() as pool:
            waits = pool.submit(store.acquire, KEY, "b", self.ttl * 60, PATIENCE)
            time.sleep(0.1)  # it has come by then, where it can
            others = [store.acquire(f"k{number}", "c", self.ttl * 60) for number in range(10)]
            store.release(KEY, "a")

            assert others == [True] * 10
            assert waits.result(DEADLINE) is True

    def test_threads_get_it_in_the_order_in_which_they_came(self, store: LeasingStore) -> None:
        """Six of one process."""

        def in_order(pause: float) -> bool:
            key = f"k{pause}"
            written(store, Record.first(key, {"order": []}))
            in_threads(7, lambda by: _take_turn(store, key, by, pause))
            return bool(current(store, key).document["order"] == [1, 2, 3, 4, 5, 6])

        with_growing_patience(in_order)

    def test_processes_get_it_in_the_order_in_which_they_came(
        self, store: LeasingStore, reopen: Reopen
    ) -> None:
        """Six of six processes."""

        def in_order(pause: float) -> bool:
            key = f"k{pause}"
            written(store, Record.first(key, {"order": []}))

            def work(by: int) -> None:
                with closing(reopen()) as own:
                    _take_turn(own, key, by, pause)

            self.at_once(7, work)
            return bool(current(store, key).document["order"] == [1, 2, 3, 4, 5, 6])

        with_growing_patience(in_order)

    def test_one_at_a_time(self, store: LeasingStore, reopen: Reopen) -> None:
        """Who works on a key under its lease never meets another; each gets it again and again."""
        written(store, Record.first(KEY, {"n": 0}))

        def work(by: int) -> list[bool]:
            with closing(reopen()) as own:
                return [_write_alone(own, f"{by}") for _ in range(10)]

        assert self.at_once(4, work) == [[True] * 10] * 4
        assert current(store).document["n"] == 40

    def test_who_is_killed_while_it_waits_is_passed_over(
        self, store: LeasingStore, reopen: Reopen
    ) -> None:
        """Those behind it get the lease all the same, and so does who comes later."""
        if not self.shared_between_processes:
            pytest.skip("of a store of one process all die together")
        store.acquire(KEY, "a", self.ttl * 60)
        here, there = multiprocessing.get_context("fork").Pipe()

        def work() -> None:
            own = reopen()
            assert isinstance(own, Leases)
            own.read(KEY)
            there.send("it waits from now on")
            own.acquire(KEY, "dead", self.ttl * 60, wait=DEADLINE * 2)

        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        try:
            assert here.poll(DEADLINE)
            with ThreadPoolExecutor() as pool:
                time.sleep(0.1)  # the child waits by then, where it can
                waits = pool.submit(store.acquire, KEY, "b", self.ttl * 60, PATIENCE)
                child.kill()
                child.join()
                store.release(KEY, "a")

                assert waits.result(DEADLINE) is True
        finally:
            child.kill()
            child.join()
            here.close()
            there.close()
        store.release(KEY, "b")
        assert patiently(lambda: store.acquire(KEY, "c", self.ttl * 60))

    def test_who_is_interrupted_while_it_waits_is_passed_over(self, store: LeasingStore) -> None:
        """As by a time limit, whose error comes out of the call: the store works on."""
        if threading.current_thread() is not threading.main_thread():
            pytest.skip("signals arrive in the main thread")

        def interrupt(*_: object) -> None:
            raise _InterruptedError

        store.acquire(KEY, "a", self.ttl * 60)
        before = signal.signal(signal.SIGUSR1, interrupt)
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
        try:
            timer.start()
            with pytest.raises(_InterruptedError):
                store.acquire(KEY, "b", self.ttl * 60, wait=PATIENCE)
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, before)
        store.release(KEY, "a")

        assert patiently(lambda: store.acquire(KEY, "c", self.ttl * 60))
        assert written(store, Record.first(KEY, {})) == store.read(KEY)

    def test_a_closed_store_lets_nobody_wait(self, reopen: Reopen) -> None:
        """StoreUnavailable, at once."""
        store = reopen()
        assert isinstance(store, Leases)
        store.acquire(KEY, "a", self.ttl * 60)
        store.close()

        with pytest.raises(StoreUnavailable):
            store.acquire(KEY, "b", self.ttl * 60, wait=PATIENCE)


def _take_turn(store: Store, key: str, by: int, pause: float) -> None:
    """Hold the lease until six others have come (0), or come as the ``by``-th and sign."""
    assert isinstance(store, Leases)
    store.read(key)
    time.sleep(pause * by)
    assert store.acquire(key, f"{by}", DEADLINE, wait=PATIENCE)
    if by == 0:
        time.sleep(pause * 7)
    else:
        read = current(store, key)
        written(store, read.next({"order": [*read.document["order"], by]}), read)
    store.release(key, f"{by}")


def _write_alone(store: Store, owner: str) -> bool:
    """Whether nobody else wrote while ``owner`` held the lease."""
    assert isinstance(store, Leases)
    assert store.acquire(KEY, owner, DEADLINE, wait=PATIENCE)
    before = current(store).version
    increment(store, 1, 0)
    alone = current(store).version == before + 1
    store.release(KEY, owner)
    return alone

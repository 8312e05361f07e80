"""The contract of leases."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from celery_statekit.errors import StoreUnavailable
from celery_statekit.record import Record
from celery_statekit.stores.base import Leases
from celery_statekit.testing.contract.crowd import in_threads
from celery_statekit.testing.contract.place import KEY, KEYS, OTHER, LeasingStore, Reopen, written
from celery_statekit.testing.contract.turns import TurnsContract


class LeasesContract(TurnsContract):
    """What a store that is also :class:`~celery_statekit.stores.base.Leases` must do."""

    def test_it_keeps_leases(self, store: LeasingStore) -> None:
        """It has all that the protocol asks for."""
        assert isinstance(store, Leases)

    def test_a_lease_has_one_holder(self, store: LeasingStore) -> None:
        """Who comes first has it; another is refused, as often as it asks."""
        assert store.acquire(KEY, "a", self.ttl * 60) is True
        assert store.acquire(KEY, "b", self.ttl * 60) is False
        assert store.acquire(KEY, "b", self.ttl * 60) is False

    def test_a_holder_renews(self, store: LeasingStore, elapse: Callable[[float], None]) -> None:
        """To acquire one's own lease is to make it last from now."""
        store.acquire(KEY, "a", self.ttl)
        elapse(self.ttl * 0.6)
        renewed = store.acquire(KEY, "a", self.ttl)
        elapse(self.ttl * 0.6)

        assert renewed is True
        assert store.acquire(KEY, "b", self.ttl) is False

    def test_a_lease_ends(self, store: LeasingStore, elapse: Callable[[float], None]) -> None:
        """After its seconds another may have it, and the first is the one refused."""
        store.acquire(KEY, "a", self.ttl)
        elapse(self.ttl * 1.1)

        assert store.acquire(KEY, "b", self.ttl * 60) is True
        assert store.acquire(KEY, "a", self.ttl * 60) is False

    def test_who_was_refused_did_not_make_it_last(
        self, store: LeasingStore, elapse: Callable[[float], None]
    ) -> None:
        """A refused acquire changes nothing."""
        store.acquire(KEY, "a", self.ttl)
        store.acquire(KEY, "b", self.ttl * 60)
        elapse(self.ttl * 1.1)

        assert store.acquire(KEY, "c", self.ttl) is True

    def test_an_ended_lease_that_nobody_took_may_be_renewed(
        self, store: LeasingStore, elapse: Callable[[float], None]
    ) -> None:
        """The holder of before is as welcome as any other."""
        store.acquire(KEY, "a", self.ttl)
        elapse(self.ttl * 1.1)

        assert store.acquire(KEY, "a", self.ttl * 60) is True
        assert store.acquire(KEY, "b", self.ttl * 60) is False

    def test_a_released_lease_is_free(self, store: LeasingStore) -> None:
        """It need not be waited out."""
        store.acquire(KEY, "a", self.ttl * 60)
        store.release(KEY, "a")

        assert store.acquire(KEY, "b", self.ttl * 60) is True

    def test_only_the_holder_releases(self, store: LeasingStore) -> None:
        """A release by another does nothing, and neither does one of a lease never given."""
        store.acquire(KEY, "a", self.ttl * 60)
        store.release(KEY, "b")
        store.release(OTHER, "b")

        assert store.acquire(KEY, "b", self.ttl * 60) is False

    def test_a_late_release_does_not_hurt_the_next_holder(
        self, store: LeasingStore, elapse: Callable[[float], None]
    ) -> None:
        """A paused holder that wakes gives back nothing that is another's."""
        store.acquire(KEY, "a", self.ttl)
        elapse(self.ttl * 1.1)
        store.acquire(KEY, "b", self.ttl * 60)
        store.release(KEY, "a")

        assert store.acquire(KEY, "c", self.ttl) is False

    def test_leases_of_two_keys_are_two(self, store: LeasingStore) -> None:
        """Keys and owners are compared byte for byte."""
        for key in KEYS:
            assert store.acquire(key, f"owner '{key}'", self.ttl * 60) is True
        for key in KEYS:
            assert store.acquire(key, f"OWNER '{key}'", self.ttl * 60) is False

    def test_a_lease_is_no_record(self, store: LeasingStore) -> None:
        """It makes no record, and neither hinders a write nor ends with the record."""
        store.acquire(KEY, "a", self.ttl * 60)
        nothing = store.read(KEY)
        record = written(store, Record.first(KEY, {}))
        written(store, record.next({}), record)
        store.delete(KEY)

        assert nothing is None
        assert store.acquire(KEY, "b", self.ttl) is False

    def test_of_many_threads_one_gets_the_lease(self, store: LeasingStore) -> None:
        """Of those who ask at the same moment exactly one is the holder."""
        for number in range(20):
            assert _ask(store, f"k{number}", self.ttl * 60).count(True) == 1

    def test_of_many_processes_one_gets_the_lease(self, reopen: Reopen) -> None:
        """Processes too."""

        def work(by: int) -> list[bool]:
            with closing(reopen()) as own:
                assert isinstance(own, Leases)
                return [own.acquire(f"k{n}", f"{by}", self.ttl * 60) for n in range(20)]

        got = self.at_once(3, work)

        assert [sum(each) for each in zip(*got, strict=True)] == [1] * 20

    def test_a_closed_store_gives_no_lease(self, reopen: Reopen) -> None:
        """StoreUnavailable, as for any call."""
        store: Any = reopen()
        store.close()

        with pytest.raises(StoreUnavailable):
            store.acquire(KEY, "a", 1.0)
        with pytest.raises(StoreUnavailable):
            store.release(KEY, "a")


def _ask(store: LeasingStore, key: str, seconds: float) -> list[bool]:
    """What each of four threads is told that ask for a lease at once."""
    return in_threads(4, lambda by: store.acquire(key, f"{by}", seconds))

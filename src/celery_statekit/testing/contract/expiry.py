"""The contract of the time to live."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_statekit.record import Record
from celery_statekit.stores.base import Store
from celery_statekit.testing.contract.place import (
    KEY,
    OTHER,
    StoreFixtures,
    a_change,
    numbers,
    written,
)


class ExpiryContract(StoreFixtures):
    """The time to live: an expired record counts as none."""

    def test_an_expired_record_is_none(self, store: Store, elapse: Callable[[float], None]) -> None:
        """It is there until its time to live has passed; then it is not, and its history neither."""
        written(store, Record.first(KEY, {}), changes=[a_change(1)], ttl=self.ttl)
        before = store.read(KEY), store.history(KEY)
        elapse(self.ttl * 1.1)

        assert all(before)
        assert store.read(KEY) is None
        assert store.history(KEY) == []

    def test_a_record_lives_as_long_as_it_was_given(
        self, store: Store, elapse: Callable[[float], None]
    ) -> None:
        """A time to live is not cut short by that of another key, or by rounding."""
        written(store, Record.first(KEY, {}), changes=[a_change(1)], ttl=self.ttl * 60)
        written(store, Record.first(OTHER, {}), changes=[a_change(1)], ttl=self.ttl)
        elapse(self.ttl * 1.1)

        assert store.read(OTHER) is None
        assert store.read(KEY) is not None
        assert numbers(store) == [1]

    def test_without_a_ttl_nothing_expires(
        self, store: Store, elapse: Callable[[float], None]
    ) -> None:
        """``ttl=None`` is for ever."""
        record = written(store, Record.first(KEY, {}))
        elapse(self.ttl * 2)

        assert store.read(KEY) == record

    def test_a_record_that_is_written_to_be_gone(self, store: Store) -> None:
        """A newer version of no time to live takes the record and its history with it."""
        before = written(store, Record.first(KEY, {}), changes=[a_change(1)])

        assert not store.write(before.next({}), expect=Record.first(KEY, {}), ttl=0.0)
        assert store.read(KEY) == before
        assert store.write(before.next({}), expect=before, ttl=0.0)
        assert store.read(KEY) is None
        assert store.history(KEY) == []

    @pytest.mark.parametrize("ttl", [0.0, -1.0])
    def test_a_ttl_that_has_passed_already(self, store: Store, ttl: float) -> None:
        """A time to live of nothing is a write that is gone at once, not one that stays."""
        assert store.write(Record.first(KEY, {}), expect=None, changes=[a_change(1)], ttl=ttl)

        assert store.read(KEY) is None
        assert store.history(KEY) == []

    def test_a_write_that_expects_an_expired_record_is_lost(
        self, store: Store, elapse: Callable[[float], None]
    ) -> None:
        """An expired record counts as none."""
        first = written(store, Record.first(KEY, {}), ttl=self.ttl)
        elapse(self.ttl * 1.1)

        assert store.write(first.next({}), expect=first) is False
        assert store.read(KEY) is None

    def test_a_key_begins_anew_after_it_expired(
        self, store: Store, elapse: Callable[[float], None]
    ) -> None:
        """``expect=None`` writes a new incarnation there, without the old history."""
        first = written(store, Record.first(KEY, {}), ttl=self.ttl)
        written(store, first.next({}), first, changes=[a_change(1), a_change(2)], ttl=self.ttl)
        elapse(self.ttl * 1.1)
        anew = written(store, Record.first(KEY, {"n": 2}), changes=[a_change(1, reason="anew")])

        assert store.read(KEY) == anew
        assert store.history(KEY) == [a_change(1, reason="anew")]

    def test_each_write_counts_its_ttl_from_then(
        self, store: Store, elapse: Callable[[float], None]
    ) -> None:
        """A live run's record does not expire under it, nor does its history."""
        record = written(store, Record.first(KEY, {}), changes=[a_change(1)], ttl=self.ttl)
        for _ in range(3):
            elapse(self.ttl * 0.5)
            record = written(store, record.next({}), record, ttl=self.ttl)

        assert store.read(KEY) == record
        assert numbers(store) == [1]

    def test_a_shorter_ttl_takes_effect(
        self, store: Store, elapse: Callable[[float], None]
    ) -> None:
        """The last write says how long, also where that is sooner."""
        first = written(store, Record.first(KEY, {}), changes=[a_change(1)], ttl=self.ttl * 60)
        written(store, first.next({}), first, changes=[a_change(2)], ttl=self.ttl)
        elapse(self.ttl * 1.1)

        assert store.read(KEY) is None
        assert store.history(KEY) == []

    def test_a_write_without_a_ttl_takes_an_earlier_one_away(
        self, store: Store, elapse: Callable[[float], None]
    ) -> None:
        """``ttl=None`` makes a record stay that would have expired, and its history with it."""
        first = written(store, Record.first(KEY, {}), changes=[a_change(1)], ttl=self.ttl)
        second = written(store, first.next({}), first, ttl=None)
        elapse(self.ttl * 1.1)

        assert store.read(KEY) == second
        assert numbers(store) == [1]

    def test_a_lost_write_leaves_the_ttl_as_it_is(
        self, store: Store, elapse: Callable[[float], None]
    ) -> None:
        """Who loses changes nothing, the time to live included."""
        first = written(store, Record.first(KEY, {}), ttl=self.ttl)
        store.write(Record.first(KEY, {}), expect=None, ttl=None)
        store.write(first.next({}).next({}), expect=first.next({}), ttl=None)
        elapse(self.ttl * 1.1)

        assert store.read(KEY) is None

    def test_delete_of_an_expired_record_finds_nothing(
        self, store: Store, elapse: Callable[[float], None]
    ) -> None:
        """False, as for any key that is not there."""
        written(store, Record.first(KEY, {}), ttl=self.ttl)
        elapse(self.ttl * 1.1)

        assert store.delete(KEY) is False

    def test_many_expired_keys_are_no_burden(
        self, store: Store, elapse: Callable[[float], None]
    ) -> None:
        """Others are written and read while many have expired, and each can begin anew."""
        for number in range(30):
            written(store, Record.first(f"k{number}", {}), changes=[a_change(1)], ttl=self.ttl)
        elapse(self.ttl * 1.1)
        for number in range(0, 30, 3):
            written(store, Record.first(f"k{number}", {}), changes=[a_change(1)])

        there = [number for number in range(30) if store.read(f"k{number}")]
        assert there == list(range(0, 30, 3))
        assert [len(store.history(f"k{number}")) for number in there] == [1] * 10

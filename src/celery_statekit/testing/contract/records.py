"""The contract of one record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import pytest

from celery_statekit.errors import StoreUnavailable
from celery_statekit.record import Limits, Record
from celery_statekit.stores.base import Store
from celery_statekit.testing.contract.place import (
    KEY,
    Reopen,
    StoreFixtures,
    a_change,
    current,
    written,
)


class RecordsContract(StoreFixtures):
    """One record: read, written, lost, deleted; and the store object that does it."""

    def test_it_is_a_store(self, store: Store) -> None:
        """It has all that the protocol asks for."""
        assert isinstance(store, Store)
        assert isinstance(store.name, str)
        assert isinstance(store.limits, Limits)

    def test_what_was_never_written_is_none(self, store: Store) -> None:
        """A key without a record reads as None, and has no history."""
        assert store.read(KEY) is None
        assert store.history(KEY) == []

    def test_a_first_write_is_read_as_written(self, store: Store) -> None:
        """A record is read as it was written, with version, incarnation and write ids."""
        record = Record.first(KEY, {"state": "PENDING"})

        assert store.write(record, expect=None) is True
        assert store.read(KEY) == record

    def test_a_next_version_takes_the_place_of_the_one_before(self, store: Store) -> None:
        """After a write that expects the newest version, that write is what is read."""
        first = written(store, Record.first(KEY, {"n": 1}))
        second = first.next({"n": 2})

        assert store.write(second, expect=first) is True
        assert store.read(KEY) == second

    def test_a_stale_write_is_lost(self, store: Store) -> None:
        """A write that expects an older version returns False and changes nothing."""
        first = written(store, Record.first(KEY, {"n": 1}))
        second = written(store, first.next({"n": 2}), first)

        assert store.write(first.next({"n": 3}), expect=first) is False
        assert store.read(KEY) == second

    def test_a_write_from_the_future_is_lost(self, store: Store) -> None:
        """A write that expects a version not yet written returns False and changes nothing."""
        first = written(store, Record.first(KEY, {"n": 1}))
        second = first.next({"n": 2})

        assert store.write(second.next({"n": 3}), expect=second) is False
        assert store.read(KEY) == first

    def test_a_write_that_expects_nothing_is_lost_where_something_is(self, store: Store) -> None:
        """``expect=None`` never writes over a record."""
        first = written(store, Record.first(KEY, {"n": 1}))

        assert store.write(Record.first(KEY, {"n": 2}), expect=None) is False
        assert store.read(KEY) == first

    def test_a_write_that_expects_something_is_lost_where_nothing_is(self, store: Store) -> None:
        """A write that expects a record does not create one."""
        never = Record.first(KEY, {"n": 1})

        assert store.write(never.next({"n": 2}), expect=never) is False
        assert store.read(KEY) is None

    def test_a_recreated_record_of_the_same_version_is_another(self, store: Store) -> None:
        """Deleted and written anew up to the same version, it is not the record once read."""
        read = written(store, Record.first(KEY, {"n": 1}))
        store.delete(KEY)
        anew = written(store, Record.first(KEY, {"n": 2}))

        assert store.write(read.next({"n": 3}), expect=read) is False
        assert store.read(KEY) == anew

    def test_a_write_that_expects_a_deleted_record_is_lost(self, store: Store) -> None:
        """A deleted record does not come back by a late write."""
        first = written(store, Record.first(KEY, {"n": 1}))
        store.delete(KEY)

        assert store.write(first.next({"n": 2}), expect=first) is False
        assert store.read(KEY) is None

    def test_delete_says_whether_there_was_something(self, store: Store) -> None:
        """Delete removes the record and returns True; where there is none, False."""
        written(store, Record.first(KEY, {}))

        assert store.delete(KEY) is True
        assert store.read(KEY) is None
        assert store.delete(KEY) is False

    def test_a_document_may_be_changed_after_it_was_written(self, store: Store) -> None:
        """What the writer does to its document later is not in the store."""
        document = {"items": ["book"]}
        written(store, Record.first(KEY, document))
        document["items"].append("pen")

        assert current(store).document == {"items": ["book"]}

    def test_a_document_may_be_changed_after_it_was_read(self, store: Store) -> None:
        """What a reader does to its document is not in the store."""
        written(store, Record.first(KEY, {"items": ["book"]}))
        current(store).document["items"].append("pen")

        assert current(store).document == {"items": ["book"]}

    def test_fields_it_does_not_know_are_kept(self, store: Store) -> None:
        """Fields of a newer release beside the document survive being written back."""
        first = Record(
            key=KEY, version=1, incarnation="i", writes=("w",), document={}, extra={"later": [1]}
        )
        written(store, first)
        written(store, current(store).next({"n": 2}), first)

        assert current(store).extra == {"later": [1]}

    def test_another_store_object_reads_the_same(self, store: Store, reopen: Reopen) -> None:
        """Two store objects on one place see each other's writes."""
        record = written(store, Record.first(KEY, {"n": 1}), changes=[a_change(1)])

        with closing(reopen()) as other:
            assert other.read(KEY) == record
            assert other.history(KEY) == [a_change(1)]

    def test_records_outlive_the_store_object(self, reopen: Reopen) -> None:
        """What was written is there after close and open."""
        with closing(reopen()) as store:
            record = written(store, Record.first(KEY, {"n": 1}))

        with closing(reopen()) as store:
            assert store.read(KEY) == record

    def test_closing_twice_is_allowed(self, reopen: Reopen) -> None:
        """Used or not."""
        unused, used = reopen(), reopen()
        used.read(KEY)

        for store in (unused, used):
            store.close()
            store.close()

    def test_a_closed_store_says_so(self, reopen: Reopen) -> None:
        """Each call is a StoreUnavailable, and nothing is written."""
        store = reopen()
        record = written(store, Record.first(KEY, {}))
        store.close()
        calls: Sequence[Callable[[], object]] = (
            lambda: store.read(KEY),
            lambda: store.write(record.next({}), expect=record),
            lambda: store.history(KEY),
            lambda: store.delete(KEY),
        )

        for call in calls:
            with pytest.raises(StoreUnavailable):
                call()
        with closing(reopen()) as again:
            assert again.read(KEY) == record

    def test_closing_one_store_leaves_others_open(self, store: Store, reopen: Reopen) -> None:
        """Who opened a store closes that one."""
        reopen().close()
        record = written(store, Record.first(KEY, {}))
        other = reopen()
        other.read(KEY)
        other.close()

        assert store.read(KEY) == record

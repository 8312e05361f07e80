"""The contract of many at once."""

from __future__ import annotations

from contextlib import closing

from celery_statekit.record import Record
from celery_statekit.stores.base import Store
from celery_statekit.testing.contract.crowd import in_threads, patiently
from celery_statekit.testing.contract.place import (
    KEY,
    Reopen,
    StoreFixtures,
    a_change,
    current,
    increment,
    written,
)


class RacesContract(StoreFixtures):
    """Threads and processes: of those who read the same version exactly one succeeds."""

    def test_of_many_threads_one_creates(self, store: Store) -> None:
        """Of those that write a key first at the same moment exactly one succeeds."""
        for number in range(20):
            key = f"k{number}"
            records = [Record.first(key, {"by": by}) for by in range(4)]
            won = _race(store, records, expect=None)

            assert won.count(True) == 1
            assert won.count(False) == 3
            assert store.read(key) == records[won.index(True)]

    def test_of_many_threads_one_writes_the_next_version(self, store: Store) -> None:
        """Of those who read the same version exactly one succeeds."""
        record = written(store, Record.first(KEY, {"by": None}))
        for _ in range(20):
            nexts = [record.next({"by": by}) for by in range(4)]
            won = _race(store, nexts, expect=record)

            assert won.count(True) == 1
            record = current(store)
            assert record == nexts[won.index(True)]

    def test_of_many_threads_one_deletes(self, store: Store) -> None:
        """Delete returns True to one of those who call it at the same moment."""
        for _ in range(10):
            written(store, Record.first(KEY, {}))

            assert in_threads(4, lambda _: store.delete(KEY)).count(True) == 1

    def test_no_update_of_threads_is_lost_or_doubled(self, store: Store) -> None:
        """Compare-and-set by four threads: each increment counts once, and has its change."""
        written(store, Record.first(KEY, {"n": 0}))
        in_threads(4, lambda by: increment(store, 25, by))

        _assert_incremented(store, 4, 25)

    def test_no_update_of_processes_is_lost_or_doubled(self, store: Store, reopen: Reopen) -> None:
        """Compare-and-set by four processes: each increment counts once, and has its change."""
        written(store, Record.first(KEY, {"n": 0}))

        def work(by: int) -> None:
            with closing(reopen()) as own:
                increment(own, 25, by)

        self.at_once(4, work)

        _assert_incremented(store, 4, 25)

    def test_of_many_processes_one_creates(self, reopen: Reopen) -> None:
        """Also where all of them are the first to open the place."""

        def work(by: int) -> bool:
            with closing(reopen()) as own:
                return own.write(Record.first(KEY, {"by": by}), expect=None)

        won = self.at_once(4, work)

        assert won.count(True) == 1
        with closing(reopen()) as store:
            assert current(store).document == {"by": won.index(True)}

    def test_readers_see_whole_versions_in_order(self, store: Store, reopen: Reopen) -> None:
        """While others write, a version is never seen in part and never after a newer one."""
        written(store, Record.first(KEY, {"n": 0, "copies": [0] * 300}))

        def work(by: int) -> None:
            with closing(reopen()) as own:
                if by == 0:
                    increment(own, 60, by)
                else:
                    _watch(own, until=60)

        self.at_once(3, work)

    def test_record_and_history_are_of_one_moment(self, store: Store, reopen: Reopen) -> None:
        """A change is seen no sooner and no later than the record that it came with."""
        written(store, Record.first(KEY, {"n": 0}))

        def work(by: int) -> None:
            with closing(reopen()) as own:
                if by == 0:
                    increment(own, 60, by)
                else:
                    _compare_history(own, until=60)

        self.at_once(2, work)

    def test_many_keys_by_many_writers(self, store: Store, reopen: Reopen) -> None:
        """Writers of different keys do not disturb each other."""

        def work(by: int) -> list[bool]:
            with closing(reopen()) as own:
                keys = [f"k{by}-{number}" for number in range(50)]
                return [
                    own.write(Record.first(key, {"by": by}), expect=None, changes=[a_change(1)])
                    for key in keys
                ]

        won = self.at_once(3, work)

        assert won == [[True] * 50] * 3
        read = [current(store, f"k{by}-{number}") for by in range(3) for number in range(50)]
        assert [record.document["by"] for record in read] == [0] * 50 + [1] * 50 + [2] * 50


def _race(store: Store, records: list[Record], expect: Record | None) -> list[bool]:
    """What each of several threads is told that write one of ``records`` at once."""
    return in_threads(len(records), lambda by: store.write(records[by], expect=expect))


def _assert_incremented(store: Store, writers: int, times: int) -> None:
    record, changes = current(store), store.history(KEY, limit=10_000)
    assert (record.version, record.document["n"]) == (writers * times + 1, writers * times)
    assert [change.number for change in changes] == list(range(1, writers * times + 1))
    by = [change.reason for change in changes]
    assert {name: by.count(name) for name in by} == {str(n): times for n in range(writers)}


def _watch(store: Store, until: int) -> None:
    """Read until ``n`` is ``until``; each version whole, none older than the one before."""
    seen = 0

    def once() -> bool:
        nonlocal seen
        record = current(store)
        n = record.document["n"]
        assert (record.version, record.document["copies"]) == (n + 1, [n] * 300)
        assert record.version >= seen
        seen = record.version
        return bool(n == until)

    patiently(once)


def _compare_history(store: Store, until: int) -> None:
    """Read record and history by turns until ``n`` is ``until``; neither is ahead of the other."""

    def once() -> bool:
        before = current(store).document["n"]
        numbers = [change.number for change in store.history(KEY, limit=10_000)]
        after = current(store).document["n"]
        assert numbers == list(range(1, len(numbers) + 1))
        assert before <= len(numbers) <= after
        return bool(before == until)

    patiently(once)

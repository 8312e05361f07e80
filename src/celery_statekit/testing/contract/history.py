"""The contract of history."""

from __future__ import annotations

from contextlib import closing

import pytest

from celery_statekit.record import Change, Limits, Record
from celery_statekit.stores.base import Store
from celery_statekit.testing.contract.place import (
    KEY,
    OTHER,
    Reopen,
    StoreFixtures,
    a_change,
    numbers,
    written,
)


class HistoryContract(StoreFixtures):
    """Changes: kept with their record, in order, the newest of them."""

    def test_changes_are_read_as_written(self, store: Store) -> None:
        """A change keeps every field, those of a newer release too."""
        change = Change(
            number=1,
            version=1,
            from_state="",
            to_state="PENDING",
            at=1.25,
            reason="because \u2028 'so' \0",
            task="shop.import",
            task_id="id",
            client_id="client",
            attempt=2,
            worker="celery@host:4711",
            detail={"due": [1, {"a": []}]},
            extra={"later": {"b": 1.0}},
        )
        written(store, Record.first(KEY, {}), changes=[change])

        assert store.history(KEY) == [change]

    def test_history_is_in_order_over_writes(self, store: Store) -> None:
        """Changes of later writes come after those of earlier ones; several in their own order."""
        first = written(store, Record.first(KEY, {}), changes=[a_change(1)])
        second = written(store, first.next({}), first, changes=[a_change(2), a_change(3)])
        written(store, second.next({}), second, changes=[a_change(4)])

        assert store.history(KEY) == [a_change(n) for n in (1, 2, 3, 4)]

    def test_more_than_nine_changes_are_in_order(self, store: Store) -> None:
        """Order is that of numbers, not of their digits."""
        written(store, Record.first(KEY, {}), changes=[a_change(n) for n in range(1, 13)])

        assert numbers(store) == list(range(1, 13))

    def test_a_write_without_changes_leaves_history_as_it_is(self, store: Store) -> None:
        """Progress, for one, is written without a change."""
        first = written(store, Record.first(KEY, {}), changes=[a_change(1)])
        written(store, first.next({}), first)

        assert numbers(store) == [1]

    def test_history_after_a_number(self, store: Store) -> None:
        """``after`` leaves out that number and all before; the last one leaves nothing."""
        written(store, Record.first(KEY, {}), changes=[a_change(n) for n in range(1, 6)])

        assert numbers(store, after=3) == [4, 5]
        assert numbers(store, after=5) == []

    def test_after_may_be_any_number(self, store: Store) -> None:
        """A number below all gives all, one over all nothing, however large."""
        written(store, Record.first(KEY, {}), changes=[a_change(1)])

        assert numbers(store, after=-5) == [1]
        assert numbers(store, after=2**70) == []

    def test_limit_gives_the_oldest(self, store: Store) -> None:
        """``limit`` cuts the newest off, so that paging by ``after`` misses nothing."""
        written(store, Record.first(KEY, {}), changes=[a_change(n) for n in range(1, 8)])

        assert numbers(store, limit=3) == [1, 2, 3]
        assert numbers(store, after=3, limit=3) == [4, 5, 6]
        assert numbers(store, after=6, limit=3) == [7]

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_that_is_not_positive_gives_nothing(self, store: Store, limit: int) -> None:
        """No limit means "all" by accident, or "all but the last"."""
        written(store, Record.first(KEY, {}), changes=[a_change(n) for n in range(1, 4)])

        assert store.history(KEY, limit=limit) == []

    def test_history_keeps_the_newest(self, reopen: Reopen) -> None:
        """Over ``limits.history_changes`` the oldest go, also where there is never more than one."""
        with closing(reopen(Limits(history_changes=3))) as store:
            record = written(store, Record.first(KEY, {}), changes=[a_change(1)])
            for number in range(2, 8):
                record = written(store, record.next({}), record, changes=[a_change(number)])

            assert numbers(store) == [5, 6, 7]

    def test_one_write_may_bring_more_changes_than_are_kept(self, reopen: Reopen) -> None:
        """The newest of one large write are kept."""
        with closing(reopen(Limits(history_changes=3))) as store:
            written(store, Record.first(KEY, {}), changes=[a_change(n) for n in range(1, 9)])

            assert numbers(store) == [6, 7, 8]

    def test_a_history_of_nothing_can_be_asked_for(self, reopen: Reopen) -> None:
        """With ``history_changes=0`` records are written and no change is kept."""
        with closing(reopen(Limits(history_changes=0))) as store:
            record = written(store, Record.first(KEY, {}), changes=[a_change(1)])
            written(store, record.next({}), record, changes=[a_change(2)])

            assert store.history(KEY) == []

    def test_histories_of_two_keys_are_two(self, reopen: Reopen) -> None:
        """Neither reading nor trimming one key's history touches another's."""
        with closing(reopen(Limits(history_changes=2))) as store:
            written(store, Record.first(OTHER, {}), changes=[a_change(1), a_change(2)])
            written(store, Record.first(KEY, {}), changes=[a_change(n) for n in range(1, 6)])

            assert numbers(store) == [4, 5]
            assert numbers(store, OTHER) == [1, 2]

    def test_a_lost_write_leaves_no_change(self, store: Store) -> None:
        """Changes come with their record or not at all."""
        first = written(store, Record.first(KEY, {}), changes=[a_change(1)])
        written(store, first.next({}), first, changes=[a_change(2)])

        assert store.write(first.next({}), expect=first, changes=[a_change(3)]) is False
        assert store.write(Record.first(KEY, {}), expect=None, changes=[a_change(3)]) is False
        assert numbers(store) == [1, 2]

    def test_delete_takes_the_history_along(self, store: Store) -> None:
        """A deleted and recreated key begins without the old changes."""
        written(store, Record.first(KEY, {}), changes=[a_change(1), a_change(2)])
        store.delete(KEY)
        gone = store.history(KEY)
        written(store, Record.first(KEY, {}), changes=[a_change(1)])

        assert gone == []
        assert numbers(store) == [1]

"""The contract of sending a first record without waiting for the store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from celery_statekit.errors import PayloadTooLarge
from celery_statekit.record import Record
from celery_statekit.stores.base import Enumerates, Labels, Notifies, Posted, Posts, kind_of
from celery_statekit.testing.contract.crowd import DEADLINE, in_child, in_threads, patiently
from celery_statekit.testing.contract.notices import Bell
from celery_statekit.testing.contract.place import (
    KEY,
    OTHER,
    PostingStore,
    Reopen,
    StoreFixtures,
    a_change,
    current,
    numbers,
    written,
)


def sent(store: PostingStore, record: Record, **facts: Any) -> Posted:
    """What comes of posting ``record``, where the store has something to send it by."""
    store.read(record.key)
    posted = store.post(record, **facts)
    assert posted is not None
    return posted


class PostsContract(StoreFixtures):
    """What a store that is also :class:`~celery_statekit.stores.base.Posts` must do."""

    def test_it_posts(self, store: PostingStore) -> None:
        """It has all that the protocol asks for."""
        assert isinstance(store, Posts)

    def test_what_was_posted_is_written(self, store: PostingStore) -> None:
        """The record with its changes, as ``write`` would; the next version may follow it."""
        first = Record.first(KEY, {"n": 1})

        assert sent(store, first, changes=[a_change(1)]).is_written(DEADLINE) is True
        assert store.read(KEY) == first
        assert numbers(store) == [1]
        second = written(store, first.next({"n": 2}), first, changes=[a_change(2)])
        assert store.read(KEY) == second
        assert numbers(store) == [1, 2]

    def test_it_never_writes_over_a_record(self, store: PostingStore) -> None:
        """Where something is it is lost, and leaves no change."""
        first = written(store, Record.first(KEY, {"n": 1}), changes=[a_change(1)])
        posted = sent(store, Record.first(KEY, {"n": 2}), changes=[a_change(1), a_change(2)])

        assert posted.is_written(DEADLINE) is False
        assert store.read(KEY) == first
        assert numbers(store) == [1]

    def test_the_same_record_is_posted_once(self, store: PostingStore) -> None:
        """Sent a second time it is lost as any other."""
        record = Record.first(KEY, {"n": 1})
        posted = [sent(store, record, changes=[a_change(1)]) for _ in range(2)]

        assert [each.is_written(DEADLINE) for each in posted] == [True, False]
        assert numbers(store) == [1]

    def test_what_was_posted_expires(
        self, store: PostingStore, elapse: Callable[[float], None]
    ) -> None:
        """After its time to live; without one never."""
        for key, ttl in ((KEY, self.ttl), (OTHER, None)):
            record = Record.first(key, {})
            assert sent(store, record, changes=[a_change(1)], ttl=ttl).is_written(DEADLINE)
        elapse(self.ttl * 1.1)

        assert store.read(KEY) is None
        assert store.history(KEY) == []
        assert store.read(OTHER) is not None

    def test_what_was_posted_is_found(self, store: PostingStore) -> None:
        """By its labels, where the store can find anything."""
        if not isinstance(store, Enumerates):
            pytest.skip("it finds nothing")
        record = Record.first(KEY, {})
        assert sent(store, record, labels=Labels("A", "client")).is_written(DEADLINE)

        assert [found.key for found in store.find(kind_of(KEY), state="A")] == [KEY]
        assert [found.key for found in store.find(kind_of(KEY), client="client")] == [KEY]
        assert store.count(kind_of(KEY)) == {"A": 1}

    def test_what_was_posted_wakes(self, store: PostingStore) -> None:
        """Who has subscribed to its key, where the store tells of anything."""
        if not isinstance(store, Notifies):
            pytest.skip("it tells of nothing")
        bell = Bell()
        store.subscribe(KEY, bell)
        assert sent(store, Record.first(KEY, {})).is_written(DEADLINE)

        bell.wait()

    def test_it_is_written_though_nobody_asks(self, store: PostingStore) -> None:
        """Who never looks at the answer has posted all the same, and may go on."""
        record = Record.first(KEY, {})
        posted = [sent(store, record), sent(store, Record.first(OTHER, {}))]
        del posted

        assert patiently(lambda: store.read(KEY)) == record
        assert patiently(lambda: store.read(OTHER)) is not None
        assert store.write(record.next({}), expect=record) is True

    def test_each_gets_its_own_answer(self, store: PostingStore) -> None:
        """Whatever else was asked meanwhile, and in whatever order the answers are looked at."""
        written(store, Record.first(KEY, {"n": 0}), changes=[a_change(1)])
        # Of that many each needs a way of its own to the store.
        in_threads(4, lambda _: [store.read(KEY) for _ in range(50)])
        keys = [f"statekit:task:{number}" for number in range(6)]
        keys[1::2] = [KEY] * 3
        posted = [store.post(Record.first(key, {"of": key})) for key in keys]
        assert current(store).document == {"n": 0}
        assert store.write(Record.first(KEY, {"n": 3}), expect=None) is False
        assert numbers(store) == [1]
        answers = [each and each.is_written(DEADLINE) for each in reversed(posted)]

        assert any(each is not None for each in posted)
        for key, answer in zip(reversed(keys), answers, strict=True):
            assert answer in (None, key != KEY)
            # None: nothing was sent.
            assert (store.read(key) is not None) == (answer is not None or key == KEY)

    def test_where_it_cannot_be_done_nothing_is(self, store: PostingStore) -> None:
        """None means that nothing was sent: who writes it then is not told that it is lost."""
        store.read(KEY)
        keys = [f"statekit:task:{number}" for number in range(20)]
        records = [Record.first(key, {}) for key in keys]
        posted = [store.post(record) for record in records]
        for record, each in zip(records, posted, strict=True):
            again = store.write(record, expect=None) if each is None else False
            assert again is (each is None)
            assert each is None or each.is_written(DEADLINE) is True

    def test_of_many_one_is_first(self, store: PostingStore) -> None:
        """Of threads that post, or write, a key first at the same moment exactly one succeeds."""
        for number in range(20):
            key = f"k{number}"
            records = [Record.first(key, {"by": by}) for by in range(4)]

            def work(by: int, records: list[Record] = records) -> bool:
                if by == 0:
                    return store.write(records[by], expect=None)
                return sent(store, records[by]).is_written(DEADLINE)

            won = in_threads(4, work)

            assert won.count(True) == 1
            assert won.count(False) == 3
            assert store.read(key) == records[won.index(True)]

    def test_what_is_too_large_is_not_posted(self, reopen: Reopen) -> None:
        """It is refused before anything is sent, and what comes next is posted."""
        with closing(reopen()) as store:
            limits = replace(store.limits, record_bytes=1000)
        with closing(reopen(limits)) as narrow:
            narrow.read(KEY)
            with pytest.raises(PayloadTooLarge):
                narrow.post(Record.first(KEY, {"x": "x" * 2000}))  # type: ignore[attr-defined]
            assert narrow.read(KEY) is None
            assert sent(narrow, Record.first(KEY, {})).is_written(DEADLINE)  # type: ignore[arg-type]

    def test_a_child_takes_no_answer_of_its_parents(self, store: PostingStore) -> None:
        """A process forked while an answer is awaited posts, and reads, for itself."""
        if not self.shared_between_processes:
            pytest.skip("no other process sees it")
        here, there = Record.first(KEY, {"by": "parent"}), Record.first(OTHER, {"by": "child"})
        posted = sent(store, here)

        def work() -> bool:
            assert patiently(lambda: store.read(KEY)) == here
            assert sent(store, here).is_written(DEADLINE) is False
            return sent(store, there).is_written(DEADLINE)

        assert in_child(work) is True
        assert posted.is_written(DEADLINE) is True
        assert store.read(OTHER) == there

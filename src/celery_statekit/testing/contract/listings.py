"""The contract of listings: their order, and their pages while others write."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

import pytest

from celery_statekit.record import Record
from celery_statekit.stores.base import Found, Labels
from celery_statekit.testing.contract.crowd import in_threads
from celery_statekit.testing.contract.place import (
    EnumeratingStore,
    StoreFixtures,
    current,
    moved,
    written,
)

#: Long enough for two moments of a store's clock to be two.
MOMENT: Final = 0.01


class ListingsContract(StoreFixtures):
    """In order, page by page, nothing left out."""

    def test_those_that_stand_longest_come_first(
        self, store: EnumeratingStore, elapse: Callable[[float], None]
    ) -> None:
        """In order of ``since``; newest the other way round."""
        for id in "dacb":
            put(store, f"k:{id}", "A")
            elapse(MOMENT)

        assert keys(store.find("k")) == ["k:d", "k:a", "k:c", "k:b"]
        assert keys(store.find("k", newest=True)) == ["k:b", "k:c", "k:a", "k:d"]
        assert keys(store.find("k", limit=2)) == ["k:d", "k:a"]
        assert keys(store.find("k", newest=True, limit=1)) == ["k:b"]

    def test_those_of_one_moment_come_in_order_of_their_keys(self, store: EnumeratingStore) -> None:
        """By Unicode code point, which is the order of Python and of UTF-8."""
        for id in (
            "b",
            "a",
            "B",
            "\u00e9",
            "z",
            "10",
            "9",
            "\uff5e",
            "\U0001f680",
            "a b",
            "_",
            "~",
        ):
            put(store, f"k:{id}", "A")
        found = store.find("k")

        assert found == sorted(found, key=position)
        assert store.find("k", newest=True) == found[::-1]
        assert listing(store, "k", limit=1) == found

    @pytest.mark.parametrize("newest", [False, True])
    def test_page_by_page(self, store: EnumeratingStore, newest: bool) -> None:  # noqa: FBT001
        """Paging by the last one misses none and repeats none; an empty page is the end."""
        for number in range(60):
            put(store, f"k:{number}", "AB"[number % 2], "c")

        some: tuple[dict[str, Any], ...] = ({}, {"state": "A"}, {"state": "B", "client": "c"})
        for filters in some:
            whole = store.find("k", newest=newest, **filters)
            assert len(whole) == (30 if "state" in filters else 60)
            for limit in (1, 7, 30, 1000):
                assert listing(store, "k", newest=newest, limit=limit, **filters) == whole

    def test_a_page_goes_on_where_the_last_one_is_gone(self, store: EnumeratingStore) -> None:
        """``after`` is a place in the order: the record that was there may have left."""
        for number in range(6):
            put(store, f"k:{number}", "A")
        first = store.find("k", limit=3)
        store.delete(first[-1].key)
        rest = store.find("k", after=position(first[-1]))

        assert keys([*first, *rest]) == [f"k:{number}" for number in range(6)]

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_that_is_not_positive_gives_nothing(
        self, store: EnumeratingStore, limit: int
    ) -> None:
        """No limit means "all" by accident, or "all but the last"."""
        for id in "abc":
            put(store, f"k:{id}", "A")

        assert store.find("k", limit=limit) == []

    def test_many_records(self, store: EnumeratingStore) -> None:
        """All are there, in pages of any size, and counted."""
        for number in range(300):
            put(store, f"k:{number}", "ABC"[number % 3])

        assert len(store.find("k")) == 100
        assert len(store.find("k", limit=10_000)) == 300
        assert sorted(keys(listing(store, "k", limit=64))) == sorted(f"k:{n}" for n in range(300))
        assert store.count("k") == {"A": 100, "B": 100, "C": 100}

    def test_older_than(self, store: EnumeratingStore, elapse: Callable[[float], None]) -> None:
        """Those that have had their label for so many seconds by the store's clock."""
        put(store, "k:a", "A")
        put(store, "k:b", "A")
        elapse(self.ttl)

        def listed_while_b_is_young() -> bool:
            moved(store, "k:b", f"{current(store, 'k:b').version}")
            return ids(store, older=self.ttl) == ids(store, older=self.ttl, newest=True) == "a"

        # A slow machine may let b grow old in between.
        assert any(listed_while_b_is_young() for _ in range(5))
        assert ids(store, older=0.0) == ids(store, older=-1.0) == "ab"
        assert ids(store, older=self.ttl * 600) == ""

    def test_pages_while_records_move(
        self, store: EnumeratingStore, elapse: Callable[[float], None]
    ) -> None:
        """Those that stay are listed exactly once, whatever the others do between two pages."""
        for number in range(24):
            put(store, f"k:{number:02}", "A")
        elapse(MOMENT)
        listed: list[Found] = []
        moving = iter(range(0, 24, 3))
        while page := store.find("k", after=position(listed[-1]) if listed else None, limit=4):
            listed += page
            for number in islice(moving, 2):
                moved(store, f"k:{number:02}", "B")

        stayed = [f"k:{number:02}" for number in range(24) if number % 3]
        assert [key for key in keys(listed) if key in stayed] == stayed
        assert len({position(found) for found in listed}) == len(listed)
        assert {f"k:{number:02}" for number in range(24)} == set(keys(listed))
        assert keys(listing(store, "k", limit=4, state="A")) == stayed

    def test_listings_while_others_write(self, store: EnumeratingStore) -> None:
        """Each record has one label at any moment, and what is found by it is the one it came with."""
        for number in range(20):
            put(store, f"k:{number:02}", "A")

        over = threading.Event()

        def move() -> None:
            try:
                for turn in range(6):
                    for number in range(0, 20, 2):
                        moved(store, f"k:{number:02}", "BA"[turn % 2])
            finally:
                over.set()

        def look() -> None:
            stays = [f"k:{number:02}" for number in range(1, 20, 2)]
            while not over.is_set():
                found = store.find("k", state="A")
                assert {each.record().document["state"] for each in found} == {"A"}
                assert [key for key in keys(found) if key in stays] == stays
                assert sum(store.count("k").values()) == 20

        in_threads(3, lambda by: look() if by else move())

        assert store.count("k") == {"A": 20}


def put(
    store: EnumeratingStore, key: str, state: str, client: str = "", ttl: float | None = None
) -> None:
    """A first record of ``key`` that is found by these labels."""
    written(store, Record.first(key, {"state": state}), ttl=ttl, labels=Labels(state, client))


def position(found: Found) -> tuple[float, str]:
    """Where it stands in the order."""
    return found.since, found.key


def keys(page: list[Found]) -> list[str]:
    """The keys of a page."""
    return [found.key for found in page]


def ids(store: EnumeratingStore, **filters: Any) -> str:
    """The ids of what is found of kind "k", in one word."""
    return "".join(key.rpartition(":")[2] for key in keys(store.find("k", **filters)))


def listing(store: EnumeratingStore, kind: str, *, limit: int, **filters: Any) -> list[Found]:
    """All that is found, read page by page."""
    listed: list[Found] = []
    while page := store.find(
        kind, after=position(listed[-1]) if listed else None, limit=limit, **filters
    ):
        assert len(page) <= limit
        listed += page
        assert len(listed) <= 1000, "the pages have no end"
    return listed

"""The contract of what records are found by: their kind, and the labels of their newest version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from celery_statekit.errors import CorruptRecord, StoreUnavailable
from celery_statekit.record import Record
from celery_statekit.stores.base import Enumerates, Found, Labels, Leases, kind_of
from celery_statekit.testing.contract.listings import (
    MOMENT,
    ListingsContract,
    ids,
    keys,
    listing,
    position,
    put,
)
from celery_statekit.testing.contract.place import (
    KEY,
    KEYS,
    OTHER,
    EnumeratingStore,
    Reopen,
    current,
    moved,
    written,
)

KIND: Final = kind_of(KEY)

#: Labels that must not be taken for one another, however a store compares text.
LABELS: Final = (
    "",
    " ",
    "A",
    "a",
    "A ",
    "A:B",
    "*",
    "%",
    "it's",
    'say "x"; DROP TABLE records;--',
    "back\\slash",
    "two\nlines",
    "tab\t",
    "caf\u00e9",
    "cafe\u0301",
    "\u4f60\u597d \U0001f680",
    "x" * 200,
)


class EnumeratesContract(ListingsContract):
    """What a store that is also :class:`~celery_statekit.stores.base.Enumerates` must do."""

    def test_it_lists_records(self, store: EnumeratingStore) -> None:
        """It has all that the protocol asks for; an empty store has none."""
        assert isinstance(store, Enumerates)
        assert store.find(KIND) == []
        assert store.find("") == []
        assert store.count(KIND) == {}

    def test_what_is_found_is_what_is_read(self, store: EnumeratingStore) -> None:
        """Key, moment and the record itself."""
        record = written(store, Record.first(KEY, {"n": [1, "\u00e9"]}), labels=Labels("A", "c"))
        (found,) = store.find(KIND)

        assert isinstance(found, Found)
        assert (found.key, found.record()) == (KEY, record)
        assert isinstance(found.since, float)
        assert found.record() == store.read(KEY)

    def test_by_state_and_by_client(self, store: EnumeratingStore) -> None:
        """Each alone and both together; none where no record has them."""
        for id, state, client in (
            ("a", "A", "x"),
            ("b", "B", "x"),
            ("c", "A", "y"),
            ("d", "A", ""),
        ):
            put(store, f"k:{id}", state, client)

        assert ids(store, state="A") == "acd"
        assert ids(store, client="x") == "ab"
        assert ids(store, state="A", client="x") == "a"
        assert ids(store, client="") == "d"
        assert ids(store, state="") == ids(store, state="C") == ids(store, client="z") == ""
        assert ids(store, state="B", client="y") == ""

    def test_a_move_resets_since(
        self, store: EnumeratingStore, elapse: Callable[[float], None]
    ) -> None:
        """With another state label a record is found by that alone, and goes to the end."""
        for id in "abc":
            put(store, f"k:{id}", "A", "c")
        before = store.find("k", limit=1)[0]
        elapse(MOMENT)
        moved(store, "k:a", "B", "c")
        after = store.find("k")[-1]

        assert (ids(store), ids(store, client="c")) == ("bca", "bca")
        assert (ids(store, state="A"), ids(store, state="B")) == ("bc", "a")
        assert (before.key, after.key) == ("k:a", "k:a")
        assert after.since > before.since
        assert store.count("k") == {"A": 2, "B": 1}

    def test_a_write_with_the_same_label_keeps_since(
        self, store: EnumeratingStore, elapse: Callable[[float], None]
    ) -> None:
        """Progress makes nobody younger; the record found is the newest version."""
        put(store, "k:a", "A")
        put(store, "k:b", "A")
        before = store.find("k")
        elapse(MOMENT)
        moved(store, "k:a", "A")
        after = store.find("k")

        assert [position(found) for found in after] == [position(found) for found in before]
        assert after[0].record() == current(store, "k:a")
        assert after[0].record().version == 2
        assert store.count("k") == {"A": 2}

    def test_another_client_label_keeps_since(
        self, store: EnumeratingStore, elapse: Callable[[float], None]
    ) -> None:
        """It is found by the new one alone."""
        put(store, "k:a", "A", "x")
        before = store.find("k")[0].since
        elapse(MOMENT)
        moved(store, "k:a", "A", "y")

        assert store.find("k")[0].since == before
        assert (ids(store, client="x"), ids(store, client="y")) == ("", "a")

    def test_a_write_without_labels_takes_them_away(self, store: EnumeratingStore) -> None:
        """Each write says what the record is found by from then on."""
        put(store, "k:a", "A", "x")
        moved(store, "k:a", "")

        assert store.count("k") == {"": 1}
        assert (ids(store, state="A"), ids(store, client="x"), ids(store, state="")) == (
            "",
            "",
            "a",
        )

    def test_a_lost_write_moves_nothing(
        self, store: EnumeratingStore, elapse: Callable[[float], None]
    ) -> None:
        """Who loses changes no label and no ``since``."""
        put(store, "k:a", "A", "x")
        before = store.find("k")
        first = current(store, "k:a")
        elapse(MOMENT)
        lost = (
            store.write(Record.first("k:a", {}), expect=None, labels=Labels("B", "y")),
            store.write(first.next({}).next({}), expect=first.next({}), labels=Labels("B", "y")),
        )

        assert lost == (False, False)
        assert store.find("k") == before
        assert store.count("k") == {"A": 1}
        assert ids(store, client="y") == ""

    def test_only_what_can_be_read_is_listed(
        self, store: EnumeratingStore, elapse: Callable[[float], None]
    ) -> None:
        """Neither deleted nor expired ones are, nor those that have nothing but a lease."""
        for number in range(5):
            put(store, f"k:expires {number}", "A", ttl=self.ttl)
        put(store, "k:b", "A", ttl=self.ttl * 60)
        put(store, "k:c", "A")
        put(store, "k:d", "B")
        store.delete("k:c")
        if isinstance(store, Leases):
            store.acquire("k:e", "owner", self.ttl * 60)
        elapse(self.ttl * 1.1)

        assert ids(store) == "bd"
        assert keys(store.find("k", limit=1)) == ["k:b"]
        assert keys(store.find("k", newest=True, limit=1, state="A")) == ["k:b"]
        assert store.count("k") == {"A": 1, "B": 1}

    def test_a_key_that_begins_anew_stands_anew(
        self, store: EnumeratingStore, elapse: Callable[[float], None]
    ) -> None:
        """Deleted or expired and written again, it has its label since then."""
        put(store, "k:a", "A", ttl=self.ttl)
        put(store, "k:b", "A", "x")
        before = {found.key: found.since for found in store.find("k")}
        store.delete("k:b")
        elapse(self.ttl * 1.1)
        put(store, "k:a", "A")
        put(store, "k:b", "A", "y")
        after = {found.key: found.since for found in store.find("k")}

        assert before.keys() == after.keys() == {"k:a", "k:b"}
        assert all(after[key] > before[key] for key in after)
        assert store.count("k") == {"A": 2}
        assert (ids(store, client="x"), ids(store, client="y")) == ("", "b")

    def test_kinds_never_mix(self, store: EnumeratingStore) -> None:
        """A kind is all before the last colon, no prefix and no pattern."""
        there = {
            "a": ["a:1", "a:2"],
            "a:b": ["a:b:1"],
            "A": ["A:1"],
            "a:": ["a::1"],
            "ab": ["ab:1"],
            "a*": ["a*:1"],
            "": [":1", "a", "a1"],
        }
        for listed in there.values():
            for key in listed:
                put(store, key, "A")

        assert {kind: sorted(keys(store.find(kind))) for kind in there} == there
        assert {kind: store.count(kind) for kind in there} == {
            kind: {"A": len(listed)} for kind, listed in there.items()
        }
        assert [store.find(kind) for kind in ("b", "*", "%", "_", "a:b:1")] == [[]] * 5

    def test_keys_of_every_kind_are_listed(self, store: EnumeratingStore) -> None:
        """Whatever stands in them; as a kind, too."""
        for number, key in enumerate(KEYS):
            written(store, Record.first(key, {"n": number}), labels=Labels("A", key[:100]))
            written(store, Record.first(f"{key[:400]}:1", {"n": number}))

        for kind in {kind_of(key) for key in KEYS}:
            expected = sorted(key for key in KEYS if kind_of(key) == kind)
            assert sorted(keys(listing(store, kind, limit=3))) == expected
        for number, key in enumerate(KEYS):
            (found,) = store.find(key[:400], limit=1)
            assert (found.key, found.record().document) == (f"{key[:400]}:1", {"n": number})
            assert keys(store.find(kind_of(key), client=key[:100])) == [key]

    def test_labels_of_every_kind(self, store: EnumeratingStore) -> None:
        """Labels are compared byte for byte, whatever stands in them."""
        for number, label in enumerate(LABELS):
            put(store, f"k:{number}", label, label)

        for number, label in enumerate(LABELS):
            assert keys(store.find("k", state=label)) == [f"k:{number}"]
            assert keys(store.find("k", client=label)) == [f"k:{number}"]
        assert store.count("k") == dict.fromkeys(LABELS, 1)

    def test_damage_does_not_hide_the_others(
        self, store: EnumeratingStore, plant: Callable[[str, bytes], None]
    ) -> None:
        """A corrupt record is listed, and says so when it is opened."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        other = written(store, Record.first(OTHER, {}), labels=Labels("A"))
        plant(KEY, b"\xff garbage")
        found = {each.key: each for each in store.find(KIND, state="A")}

        assert found.keys() == {KEY, OTHER}
        assert found[OTHER].record() == other
        with pytest.raises(CorruptRecord) as raised:
            found[KEY].record()
        assert raised.value.key == KEY

    def test_a_damaged_record_that_is_deleted_is_no_longer_listed(
        self, store: EnumeratingStore, plant: Callable[[str, bytes], None]
    ) -> None:
        """What it was found by goes with it, though it cannot be read."""
        put(store, KEY, "A", "c")
        plant(KEY, b"garbage")
        store.delete(KEY)

        assert (store.find(KIND), store.find(KIND, client="c"), store.count(KIND)) == ([], [], {})

    def test_a_closed_store_lists_nothing(self, reopen: Reopen) -> None:
        """StoreUnavailable, as for any call."""
        store = reopen()
        assert isinstance(store, Enumerates)
        store.close()

        with pytest.raises(StoreUnavailable):
            store.find(KIND)
        with pytest.raises(StoreUnavailable):
            store.count(KIND)

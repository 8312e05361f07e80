"""The contract of damaged bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_statekit.errors import CorruptRecord
from celery_statekit.record import Record, encode_record
from celery_statekit.stores.base import Store
from celery_statekit.testing.contract.place import (
    KEY,
    OTHER,
    StoreFixtures,
    a_change,
    numbers,
    written,
)


class DamageContract(StoreFixtures):
    """Stored bytes that are not what was written."""

    @pytest.mark.parametrize(
        "text", [b"", b"{}", b"null", b"\xff\xfe", b"00000000:{}", b"garbage: " * 50]
    )
    def test_damage_is_told_and_never_read_as_something_else(
        self, store: Store, plant: Callable[[str, bytes], None], text: bytes
    ) -> None:
        """CorruptRecord with the key, on read and on history; other keys are unaffected."""
        written(store, Record.first(KEY, {"n": 1}), changes=[a_change(1)])
        other = written(store, Record.first(OTHER, {"n": 2}), changes=[a_change(1)])
        plant(KEY, text)

        with pytest.raises(CorruptRecord) as raised:
            store.read(KEY)
        with pytest.raises(CorruptRecord):
            store.history(KEY)
        assert raised.value.key == KEY
        assert store.read(OTHER) == other
        assert numbers(store, OTHER) == [1]

    def test_one_changed_byte_is_told(
        self, store: Store, plant: Callable[[str, bytes], None]
    ) -> None:
        """A document that is still JSON, but not the one written, is damage."""
        record = written(store, Record.first(KEY, {"price": 100}))
        plant(KEY, encode_record(record, store.limits).replace("100", "900").encode())

        with pytest.raises(CorruptRecord):
            store.read(KEY)

    def test_the_record_of_another_key_is_told(
        self, store: Store, plant: Callable[[str, bytes], None]
    ) -> None:
        """A whole record that stands under a key not its own is damage."""
        written(store, Record.first(KEY, {}))
        plant(KEY, encode_record(Record.first(OTHER, {}), store.limits).encode())

        with pytest.raises(CorruptRecord):
            store.read(KEY)

    def test_a_damaged_record_can_be_deleted(
        self, store: Store, plant: Callable[[str, bytes], None]
    ) -> None:
        """Delete is the way out: the key begins anew afterwards."""
        written(store, Record.first(KEY, {}), changes=[a_change(1)])
        plant(KEY, b"garbage")

        assert store.delete(KEY) is True
        anew = written(store, Record.first(KEY, {"n": 2}), changes=[a_change(1)])
        assert store.read(KEY) == anew
        assert numbers(store) == [1]

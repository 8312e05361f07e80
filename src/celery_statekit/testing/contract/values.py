"""The contract of what may be written."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

import pytest

from celery_statekit.errors import InvalidInput, NewerFormat, PayloadTooLarge
from celery_statekit.record import Change, Limits, Record, encode_record
from celery_statekit.stores.base import Store
from celery_statekit.testing.contract.place import (
    KEY,
    KEYS,
    Reopen,
    StoreFixtures,
    a_change,
    current,
    numbers,
    written,
)

STRINGS: Final = (
    "",
    "'quoted' \"twice\" \\ and `so`",
    "a\0b",
    "tab\t, line\r\n, bell\a, escape \x1b[31m",
    "caf\u00e9 cafe\u0301 \u00df \u4f60\u597d",
    "\u202e\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\u2028\u2029\ufeff\u200b",
    "\U0001f680\U0001f469\u200d\U0001f680",
    "</script><!-- {{ x }} %s ${y}",
    '{"not": "parsed"}',
)

VALUES: Final[tuple[object, ...]] = (
    [],
    {},
    [[], [{}], {"a": []}],
    None,
    True,
    0,
    12345678901234567,
    -(2**80),
    0.30000000000000004,
    1.0,
    -0.0,
    5e-324,
    1e308,
    {"__type__": "Decimal", "__value__": "1"},
    {"": 1, " ": 2, "a.b": 3, "$c": 4},
)


class ValuesContract(StoreFixtures):
    """Sizes, text and JSON: refused before anything is done, or read as written."""

    def test_a_record_of_exactly_the_limit_is_written(self, reopen: Reopen) -> None:
        """``limits.record_bytes`` itself is allowed."""
        record = Record.first(KEY, {"text": "x" * 500})
        size = len(encode_record(record, Limits()).encode())

        with closing(reopen(Limits(record_bytes=size))) as store:
            assert store.write(record, expect=None) is True
            assert store.read(KEY) == record

    def test_one_byte_over_the_limit_is_refused(self, reopen: Reopen) -> None:
        """PayloadTooLarge names the limit; neither record nor change is written."""
        first = Record.first(KEY, {"text": "x" * 500})
        size = len(encode_record(first, Limits()).encode())

        with closing(reopen(Limits(record_bytes=size - 1))) as store:
            with pytest.raises(PayloadTooLarge, match=f"at most {size - 1} bytes"):
                store.write(first, expect=None, changes=[a_change(1)])

            assert store.read(KEY) is None
            assert store.history(KEY) == []

    def test_size_is_counted_in_bytes(self, reopen: Reopen) -> None:
        """A character of four bytes counts as four."""
        with closing(reopen(Limits(record_bytes=600))) as store, pytest.raises(PayloadTooLarge):
            store.write(Record.first(KEY, {"text": "\U0001f680" * 150}), expect=None)

    def test_a_record_near_the_default_limit(self, store: Store) -> None:
        """250,000 bytes are read as written."""
        record = written(store, Record.first(KEY, {"text": "\u00e9" * 125_000}))

        assert store.read(KEY) == record

    @pytest.mark.parametrize("value", [math.nan, math.inf, b"bytes", {1, 2}, "\ud800", object()])
    def test_what_json_has_no_form_for_is_refused(self, store: Store, value: object) -> None:
        """InvalidInput, and the record before it is untouched."""
        first = written(store, Record.first(KEY, {"n": 1}), changes=[a_change(1)])

        with pytest.raises(InvalidInput):
            store.write(first.next({"n": value}), expect=first, changes=[a_change(2)])

        assert store.read(KEY) == first
        assert numbers(store) == [1]

    def test_a_change_without_json_form_refuses_the_record_too(self, store: Store) -> None:
        """Record and changes are written both or neither."""
        first = written(store, Record.first(KEY, {"n": 1}), changes=[a_change(1)])
        bad = Change(
            number=2, version=2, from_state="A", to_state="B", at=1.0, detail={"x": math.nan}
        )

        with pytest.raises(InvalidInput):
            store.write(first.next({"n": 2}), expect=first, changes=[bad])

        assert store.read(KEY) == first
        assert numbers(store) == [1]

    def test_a_newer_format_can_be_read_but_not_written_back(
        self, store: Store, plant: Callable[[str, bytes], None]
    ) -> None:
        """A record of a newer release is shown as it is, and never written by this one."""
        written(store, Record.first(KEY, {"n": 1}))
        plant(KEY, _of_newer_release(current(store)))
        newer = current(store)

        assert (newer.format, newer.document, newer.extra) == (99, {"n": 1}, {"later": True})
        with pytest.raises(NewerFormat):
            store.write(newer.next({"n": 2}), expect=newer)
        assert store.read(KEY) == newer

    def test_no_key_is_taken_for_another(self, store: Store) -> None:
        """Keys are compared byte for byte: case, spaces, accents and wildcards count."""
        for number, key in enumerate(KEYS):
            written(store, Record.first(key, {"n": number}), changes=[a_change(1, reason=key)])

        assert [current(store, key).document["n"] for key in KEYS] == list(range(len(KEYS)))
        assert [store.history(key)[0].reason for key in KEYS] == list(KEYS)
        assert [store.delete(key) for key in KEYS] == [True] * len(KEYS)

    @pytest.mark.parametrize("text", STRINGS)
    def test_text_is_read_as_written(self, store: Store, text: str) -> None:
        """Text of every kind, as a value and as a name, with NUL and separators in it."""
        record = written(store, Record.first(KEY, {"text": text, f"name {text}": [text]}))

        assert store.read(KEY) == record

    @pytest.mark.parametrize("value", VALUES, ids=repr)
    def test_json_is_read_as_written(self, store: Store, value: object) -> None:
        """Nothing is rounded, no empty list becomes an object, no float a whole number."""
        written(store, Record.first(KEY, {"value": value}))
        read = current(store).document["value"]

        assert (repr(value), type(value)) == (repr(read), type(read))

    def test_deep_documents_are_read_as_written(self, store: Store) -> None:
        """A hundred levels, of lists and objects by turns."""
        value: Any = "bottom"
        for _ in range(50):
            value = {"deeper": [value]}
        record = written(store, Record.first(KEY, value))

        assert store.read(KEY) == record


def _of_newer_release(record: Record) -> bytes:
    """``record`` as a release of format 99 would have written it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("celery_statekit.record.FORMAT", 99)
        return encode_record(replace(record, extra={"later": True}), Limits()).encode()

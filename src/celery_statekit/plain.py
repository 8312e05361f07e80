"""Plain JSON values: the checked copy that a client's document is made of.

Plain is what ``json`` writes and reads back as the same: None, bool, int, finite float, text that
UTF-8 can hold, list (a tuple becomes one), dict with keys of text. Nothing foreign is called on the way: no ``__json__``,
no ``repr``, no pickle.
"""

from __future__ import annotations

import dataclasses
import math
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

from celery_statekit.errors import Brief, InvalidClientState, PayloadTooLarge, brief

#: How deep a document may be nested.
LEVELS: Final = 100
#: Largest int: each has a float near it, which a field declared ``float`` makes of it, and so do
#: readers in other languages. (msgspec before 0.22 raises SystemError where there is none.)
INT_BITS: Final = 1023

#: What kombu's JSON decoder takes for one of its envelopes (kombu 5.7, ``kombu/utils/json.py``).
_ENVELOPE: Final = frozenset({"__type__", "__value__"})
#: The key that makes an envelope plain data again.
_SEAL: Final = "__plain__"

_RULE: Final = "JSON values: None, bool, int, float, str, list, dict with str keys"
_SCALARS: Final = (date, time, timedelta, Decimal, UUID, bytes, bytearray, memoryview, Enum)

Step = str | int


def shown(value: object) -> Brief:
    """``value`` for an error: a scalar as its short ``repr``, else only what kind of thing it is."""
    if value is None or type(value) in (bool, int, float, str):
        return Brief(brief(value))
    size = f" of {len(value)}" if isinstance(value, (dict, list, tuple, set, frozenset)) else ""
    return Brief(f"<{type(value).__name__}{size}>")


def where(path: str, steps: tuple[Step, ...] | list[Step]) -> str:
    """The JSON path that leads from ``path`` by ``steps``: ``$.items[0]``."""
    for step in steps:
        plain_name = isinstance(step, str) and step.isidentifier() and len(step) <= 80
        path += f".{step}" if plain_name else f"[{brief(step)}]"
    return path


class Copying:
    """One checked copy of one value.

    Args:
        what: what the value is, for errors: ``"Order"``.
        path: where it stands, for errors.
        room: about how many bytes of JSON it may take; keeps a small value that holds the same
            list a million times from filling the memory. Nothing smaller is refused by it.
        typed: also take what fields may declare: sets, dataclasses, dates and times, Decimal,
            UUID, bytes and enums, by their JSON forms.
    """

    def __init__(self, what: str, path: str, room: int, *, typed: bool = False) -> None:
        self.what = what
        self.path = path
        self.room = room
        self._limit = room
        self.typed = typed
        #: What was not plain, and where: a reader must get it back as it was.
        self.met: list[tuple[tuple[Step, ...], object]] = []
        #: Whether a dict may look like kombu's envelope, so that it needs :func:`seal`.
        self.has_envelope = False
        self._steps: list[Step] = []
        self._open: set[int] = set()

    def of(self, value: object) -> Any:
        """The copy of ``value``; nothing of it is shared with ``value``.

        Raises:
            InvalidClientState: something in it has no place in JSON, or is nested too deep.
            PayloadTooLarge: it takes more than the room given.
        """
        self._take(1)
        if value is None or isinstance(value, bool):
            return value
        if self.typed and isinstance(value, _SCALARS):
            return self._scalar(value)
        if isinstance(value, str):
            return self._text(value, value)
        if isinstance(value, int):
            if value.bit_length() > INT_BITS:
                raise self.refusal("an int too large", value, f"ints of at most {INT_BITS} bits")
            return int(value)
        if isinstance(value, float):
            if not math.isfinite(value):
                raise self.refusal("not a finite number", value, "finite floats")
            return float(value)
        return self._container(value)

    def refusal(self, fault: str, got: object, allowed: str) -> InvalidClientState:
        """The error that says what is wrong where the copy stands."""
        path = where(self.path, self._steps)
        return InvalidClientState(f"{self.what}: {fault}", path, shown(got), allowed)

    def _take(self, room: int) -> None:
        self.room -= room
        if self.room < 0:
            raise PayloadTooLarge(
                f"{self.what} too large",
                where(self.path, self._steps),
                Brief(f"over {self._limit} bytes"),
                f"at most {self._limit} bytes",
            )

    def _text(self, text: str, got: object) -> str:
        self._take(len(text))
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                rule = "text that UTF-8 can hold"
                raise self.refusal("text with an unpaired surrogate", got, rule) from None
        return str.__str__(text)

    def _container(self, value: object) -> Any:
        if id(value) in self._open:
            raise self.refusal("a value that holds itself", value, "values without cycles")
        if len(self._steps) >= LEVELS:
            raise self.refusal("nested too deep", value, f"at most {LEVELS} levels")
        self._open.add(id(value))
        copy: list[Any] | dict[str, Any]
        if isinstance(value, (list, tuple)):
            copy = self._row(value)
        elif isinstance(value, dict):
            copy = self._table(value)
        elif self.typed and isinstance(value, (set, frozenset)):
            self._note(value)
            copy = self._row(value)
        elif self.typed and dataclasses.is_dataclass(value) and not isinstance(value, type):
            self._note(value)
            names = [field.name for field in dataclasses.fields(value)]
            if missing := [name for name in names if not hasattr(value, name)]:
                raise self.refusal(f"{type(value).__name__} lacks {missing[0]}", value, _RULE)
            copy = self._table({name: getattr(value, name) for name in names})
        else:
            raise self.refusal(f"{type(value).__name__} has no JSON form", value, _RULE)
        self._open.discard(id(value))
        return copy

    def _row(self, items: Any) -> list[Any]:
        copy = []
        for index, item in enumerate(items):
            self._steps.append(index)
            copy.append(self.of(item))
            self._steps.pop()
        return copy

    def _table(self, items: dict[Any, Any]) -> dict[str, Any]:
        copy = {}
        for key, item in items.items():
            if not isinstance(key, str):
                raise self.refusal("a key that is no text", key, "str keys")
            name = self._text(key, key)
            self._steps.append(name)
            copy[name] = self.of(item)
            self._steps.pop()
        if copy.keys() >= _ENVELOPE:
            self.has_envelope = True
        return copy

    def _scalar(self, value: object) -> Any:
        if isinstance(value, Decimal) and not value.is_finite():
            raise self.refusal("not a finite number", str(value), "finite decimals")
        import msgspec  # noqa: PLC0415 - a task without clients does not pay for it

        try:
            form = value.value if isinstance(value, Enum) else msgspec.to_builtins(value)
        except (TypeError, ValueError, OverflowError) as exc:
            raise self.refusal(f"{type(value).__name__} has no JSON form", value, _RULE) from exc
        self._note(value)
        return self.of(form)

    def _note(self, value: object) -> None:
        self.met.append((tuple(self._steps), value))

    def check_kept(self, read: object) -> None:
        """Check that ``read``, what a reader makes of the copy, holds every typed value as it was.

        Raises:
            InvalidClientState: it would come back as something else: a date where the field is
                declared ``Any``, a subclass of the declared dataclass.
        """
        for steps, value in self.met:
            there: Any = read
            for step in steps:
                if isinstance(there, (set, frozenset)):
                    break  # its members have no place to be found at; the field declares them
                there = there[step] if _holds_items(there) else getattr(there, str(step), None)
            else:
                if not _same(value, there):
                    self._steps = list(steps)
                    fault = f"{type(value).__name__} would come back as {type(there).__name__}"
                    raise self.refusal(fault, value, "what the field declares")


def _holds_items(value: object) -> bool:
    return isinstance(value, (list, tuple, dict))


def _same(value: object, there: object) -> bool:
    if isinstance(value, (set, frozenset)):
        return isinstance(there, (set, frozenset))
    if dataclasses.is_dataclass(value):
        return type(value) is type(there)
    return bool(value == there)


def seal(value: Any) -> Any:
    """A copy of plain ``value`` in which no dict is an envelope to kombu's JSON decoder.

    ``{"__type__": t, "__value__": v}`` gets a third key, ``"__plain__": true``; one that has these
    three keys already gets its own third value in a list, so that :func:`unseal` is exact.
    """
    if isinstance(value, list):
        return [seal(item) for item in value]
    if not isinstance(value, dict):
        return value
    copy = {name: seal(item) for name, item in value.items()}
    if copy.keys() == _ENVELOPE:
        copy[_SEAL] = True
    elif copy.keys() == _ENVELOPE | {_SEAL}:
        copy[_SEAL] = [copy[_SEAL]]
    return copy


def unseal(value: Any) -> Any:
    """What :func:`seal` was given."""
    if isinstance(value, list):
        return [unseal(item) for item in value]
    if not isinstance(value, dict):
        return value
    copy = {name: unseal(item) for name, item in value.items()}
    if copy.keys() == _ENVELOPE | {_SEAL}:
        third = copy[_SEAL]
        if third is True:
            del copy[_SEAL]
        elif isinstance(third, list) and len(third) == 1:
            copy[_SEAL] = third[0]
    return copy

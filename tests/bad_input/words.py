"""What the cases cannot say in JSON, by small words: ``{"$": "deep", "depth": 3000}``."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any, Final

from celery_statekit.record import Limits

from .shop import CLASSES, Order, Unfinished, pay

#: Calls of hooks that nobody may call.
hooked: Final[list[str]] = []

#: Largest document of a client, in bytes.
ROOM: Final = Limits().record_bytes


class Hook:
    """Would say how kombu should write it."""

    def __json__(self) -> dict[str, Any]:
        hooked.append("__json__")
        return {}


class Mute:
    """Cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class Later:
    """Can only be iterated over with ``async for``."""

    def __aiter__(self) -> Later:
        return self


#: A class whose name would break a line of a log.
Torn: Final = type("Torn\nin \x1b[31mtwo", (), {})


async def pay_later(order: Order) -> None:
    """An update that nobody awaits."""
    await asyncio.sleep(0)
    pay(order)


def _order(*, without: list[str] | tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """A good document, changed."""
    document = {"client_id": "o-1", "state": "BASKET", "version": 2, "items": ["book"], **changes}
    return {name: value for name, value in document.items() if name not in without}


def _json(of: Any, before: str = "", after: str = "", encoding: str = "") -> str | bytes:
    text = before + json.dumps(of, ensure_ascii=False, separators=(",", ":")) + after
    return text.encode(encoding) if encoding else text


def _sized_order(size: int) -> dict[str, Any]:
    """A good document whose JSON takes ``size`` bytes."""
    document = {**Order("o-1").to_dict(), "anything": ""}
    return {**document, "anything": "x" * (size - len(_json(document)))}


def _sealed(of: Any = None, text: str | None = None, key: str = "k") -> str:
    """A text that a store may hold: with the crc of ``key`` and of what follows."""
    body = str(_json(of)) if text is None else text
    return f"{zlib.crc32(f'{key} {body}'.encode()):08x}:{body}"


def _record(of: Any = None, *, key: str = "k", **changes: Any) -> str:
    """A record of one document, its envelope changed."""
    envelope = {
        "format": 1,
        "v": 1,
        "born": "0a",
        "writes": ["0b"],
        "doc": {} if of is None else of,
        **changes,
    }
    return _sealed(envelope, key=key)


def _deep(depth: int, *, key: str = "", end: Any = 0) -> Any:
    value = end
    for _ in range(depth):
        value = {key: value} if key else [value]
    return value


def _cycle(*, of: str = "list") -> Any:
    if of == "dict":
        table: dict[str, Any] = {}
        table["again"] = table
        return table
    row: list[Any] = []
    row.append(row)
    return row


def _member(of: str, name: str) -> Enum:
    member: Enum = CLASSES[of][name]
    return member


def _of(make: Callable[[Any], Any]) -> Callable[..., Any]:
    def word(of: Any) -> Any:
        return make(of)

    return word


#: Each makes its value anew.
WORDS: Final[dict[str, Callable[..., Any]]] = {
    "async function": lambda: pay_later,
    "async generator": Later,
    "bytes": lambda of: of.encode("latin-1"),
    "class": lambda of: CLASSES[of],
    "cycle": _cycle,
    "date": _of(date.fromisoformat),
    "decimal": _of(Decimal),
    "deep": _deep,
    "dict": lambda of: {(tuple(key) if isinstance(key, list) else key): item for key, item in of},
    "exception": _of(ValueError),
    "float": _of(float),
    "fraction": lambda of: Fraction(*of),
    "frozenset": _of(frozenset),
    "generator": lambda: (number for number in range(3)),
    "hook": Hook,
    "inf": lambda: float("inf"),
    "int": lambda digits: 10 ** (digits - 1),
    "json": _json,
    "lambda": lambda: lambda: None,
    "member": _member,
    "mute": Mute,
    "nan": lambda: float("nan"),
    "object": object,
    "order": _order,
    "power": lambda of, to, plus=0: of**to + plus,
    "record": _record,
    "sealed": _sealed,
    "set": _of(set),
    "sized order": _sized_order,
    "text": lambda of, times: of * times,
    "torn": Torn,
    "tuple": _of(tuple),
    "twice": lambda key: f"{{{json.dumps(key)}: 1, {json.dumps(key)}: 2}}",
    "unfinished": Unfinished,
}


def resolved(value: Any) -> Any:
    """``value`` of a case with what its words stand for, made anew."""
    if isinstance(value, list):
        return [resolved(item) for item in value]
    if not isinstance(value, dict):
        return value
    given = {name: resolved(item) for name, item in value.items()}
    return WORDS[given.pop("$")](**given) if "$" in given else given


def made_of(value: Any) -> list[tuple[Any, ...]]:
    """What ``value`` is made of, to the sign of a zero; whatever its depth, and also of a cycle."""
    parts: list[tuple[Any, ...]] = []
    seen: dict[int, int] = {}
    ahead = [value]
    while ahead:
        item = ahead.pop()
        kind = type(item).__name__
        if isinstance(item, int) and not isinstance(item, (bool, Enum)):
            parts.append((kind, hex(item)))
        elif isinstance(item, str) and len(item) > 1000:
            parts.append((kind, len(item), hash(item)))
        elif item is None or isinstance(item, (bool, float, str, bytes, Decimal, date, Enum)):
            parts.append((kind, repr(item)))
        elif id(item) in seen:
            parts.append((kind, "again", seen[id(item)]))
        else:
            seen[id(item)] = len(seen)
            inside = _inside(item)
            parts.append((kind, id(item) if inside is None else len(inside)))
            ahead += reversed(inside or [])
    return parts


def _inside(item: Any) -> list[Any] | None:
    if isinstance(item, dict):
        return [part for pair in item.items() for part in pair]
    if isinstance(item, (list, tuple, set, frozenset)):
        return list(item)
    own = None if isinstance(item, type) else getattr(item, "__dict__", None)
    return [own] if type(own) is dict else None

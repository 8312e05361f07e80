"""Progress: how far a run is, as a value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Real
from typing import Any, Final

from celery_statekit.errors import InvalidProgress, brief

#: How deep a task's own facts may be nested.
LEVELS: Final = 100
#: How many values a document may hold.
VALUES: Final = 1_000_000
#: Over this an ``int`` may have no ``float``.
_SMALL: Final = 2**53


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come, and what follows from it.

    Every field is checked and made plain (``int``, ``float``, ``str``, JSON) when the value is
    made; ``InvalidProgress`` names the field that means nothing. ``current`` may exceed
    ``total``: a total that turns out too low is kept as it was given, and ``percent`` stays 100.
    """

    #: Items done, in the running step where there are steps.
    current: float = 0
    #: Items to do; None: unknown.
    total: float | None = None
    #: What is being done, in words.
    message: str = ""
    #: The task's own facts: JSON.
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)
    #: Name of the running step.
    step: str = ""
    #: Which step that is, from 1; 0 where there are no steps.
    step_number: int = 0
    #: How many steps there are; None: unknown.
    step_count: int | None = None
    #: Items per second, lately.
    rate: float | None = None
    #: Seconds until the end at that rate.
    eta: float | None = None
    #: How far over all steps by their weights, 0 to 1; None: unknown.
    fraction: float | None = None
    #: Fields that this release does not know.
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        held = vars(self)
        for name, check in _CHECKS.items():
            value = held[name]
            if value is not None or name not in _MAY_BE_NONE:
                held[name] = check(value, name)

    @property
    def percent(self) -> float | None:
        """0 to 100, over all steps where their weights are known; None: the total is unknown."""
        if self.fraction is not None:
            return round(self.fraction * 100, 6)
        if self.total is None:
            return None
        return round(share_done(self.current, self.total) * 100, 6)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that ``from_dict`` reads, without what is empty."""
        document = dict(self.extra)
        held, nothing = vars(self), vars(NOTHING)
        for name in _FIELDS:
            value = held[name]
            if name == "current" or value != nothing[name]:
                document[name] = dict(value) if name == "details" else value
        return document

    @classmethod
    def from_dict(cls, value: object) -> Progress:
        """The progress that ``to_dict`` gave; keys that this release does not know are kept.

        Raises:
            InvalidProgress: it is no mapping, or a field of it means nothing.
        """
        document = checked_mapping(value, "progress")
        known = {name: document.pop(name) for name in _FIELDS if name in document}
        return cls(**known, extra=document)

    def meta(self) -> dict[str, Any]:
        """The meta of Celery's state ``PROGRESS``, as its common readers want it.

        celery-progress 0.5 (``celery_progress/backend.py``) reads ``pending``, ``current``,
        ``total``, ``percent`` and ``description``, Celery tutorials ``current``, ``total`` and
        ``status``; the details stand beside them. They calculate with the numbers, so an
        unknown total is 0 with percent 0, as celery-progress itself has it.
        """
        return {
            **self.details,
            "pending": False,
            "current": self.current,
            "total": self.total or 0,
            "percent": round(self.percent or 0, 2),
            "description": self.message or self.step,
            "status": self.message or self.step,
        }

    def __str__(self) -> str:
        text = _shown(self.current)
        if self.total is not None:
            text += f"/{_shown(self.total)}"
        if self.percent is not None:
            text += f" ({math.floor(self.percent)} %)"
        if self.step:
            of = "" if self.step_count is None else f" of {self.step_count}"
            text = f"step {self.step_number}{of} {self.step!r}: {text}"
        if self.message:
            # One line, whatever a task puts in: texts of tasks end in logs and terminals.
            plain = self.message.isprintable()
            text += f" {self.message if plain else repr(self.message)[1:-1]}"
        return text


def share_done(current: float, total: float) -> float:
    """How much of ``total`` is done, 0 to 1."""
    return min(current / total, 1.0) if total else 1.0


def _shown(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def checked_number(value: Any, path: str) -> float:
    """A finite number of at least 0."""
    if type(value) is int and 0 <= value <= _SMALL:
        return value
    try:
        number = float(value) if _is_real(value) else math.nan
    except (ValueError, OverflowError):  # Decimal("sNaN"), 10**4000
        number = math.nan
    if not 0 <= number < math.inf:
        raise InvalidProgress("not an amount", path, value, "a finite number >= 0")
    if isinstance(value, float):
        return number
    return int(value) if value == int(value) else number


def _is_real(value: object) -> bool:
    return isinstance(value, (Real, Decimal)) and not isinstance(value, bool)


def _count(value: object, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidProgress("not a count", path, value, "an int >= 0")
    return int(value)


def _fraction(value: object, path: str) -> float:
    number = checked_number(value, path)
    if number > 1:
        raise InvalidProgress("not a fraction", path, value, "a number from 0 to 1")
    return number


def checked_text(value: object, path: str) -> str:
    """A ``str``."""
    if type(value) is str and value.isascii():
        return value
    if not isinstance(value, str):
        raise InvalidProgress("not text", path, value, "a str")
    # Unpaired surrogates (a file name in a message) have no form in JSON's UTF-8.
    return value.encode("utf-8", "replace").decode()


def checked_mapping(value: object, path: str) -> dict[str, Any]:
    """A mapping with text for keys."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InvalidProgress("not an object", path, value, "a mapping with str keys")
    return dict(value)


def check_nesting(value: object) -> None:
    """Check what ``json`` does not: keys inside ``value``, how deep it is, and how much it holds.

    Raises:
        TypeError: a key is no text; JSON may make of it one that stands there already.
        ValueError: it is deeper than every reader can be sure to read, or holds more than a
            million values (a short list that holds itself twice, forty times over, does).
    """
    held, left = [(value, LEVELS)], VALUES
    while held:
        item, levels = held.pop()
        if isinstance(item, Mapping):
            for name in item:
                if not isinstance(name, str):
                    raise TypeError(f"key {brief(name)} is no text")
            item = tuple(item.values())
        elif not isinstance(item, (list, tuple)):
            continue
        left -= len(item)
        if not levels:
            raise ValueError(f"nested over {LEVELS} levels")
        if left < 0:
            raise ValueError(f"holds over {VALUES} values")
        held += [(inner, levels - 1) for inner in item]


def _json_object(value: object, path: str) -> dict[str, Any]:
    if value == {}:
        return {}
    document = checked_mapping(value, path)
    if not document:
        return document
    try:
        check_nesting(document)
        text = json.dumps(document, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidProgress(f"not JSON ({exc})", path, value, "JSON values") from exc
    # Read back: later changes of what was given must not reach a value in another thread.
    copy: dict[str, Any] = json.loads(text)
    return copy


_CHECKS: Final[Mapping[str, Callable[[Any, str], Any]]] = {
    "current": checked_number,
    "total": checked_number,
    "message": checked_text,
    "details": _json_object,
    "step": checked_text,
    "step_number": _count,
    "step_count": _count,
    "rate": checked_number,
    "eta": checked_number,
    "fraction": _fraction,
    "extra": _json_object,
}
#: What a serialised progress holds under names of its own.
_FIELDS: Final = tuple(name for name in _CHECKS if name != "extra")
_MAY_BE_NONE: Final = frozenset({"total", "step_count", "rate", "eta", "fraction"})
NOTHING: Final = Progress()

"""Checkpoint: what a run leaves for the next attempt of its task to resume from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from celery_statekit.errors import InvalidInput, PayloadTooLarge, brief
from celery_statekit.frozen import changed
from celery_statekit.progress import check_nesting

#: Which part of a record's bytes a checkpoint may take: it is written again with the whole record.
SHARE: Final = 4
#: Over this a count is none: no source has so many items.
_MOST: Final = 2**53
#: How many tracks of a task may resume, and the longest name of one, in characters.
NAMES: Final = 64
NAME_LENGTH: Final = 100


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What the attempts of a task have left so far; each takes it over and may renew it."""

    #: What was last given to ``self.checkpoint()``: JSON. None: nothing to resume from.
    value: Any = field(default=None, hash=False)
    #: The attempt that gave it; 0: none has.
    attempt: int = 0
    #: When it was given, in seconds since the epoch, by the writer's clock; None: never.
    at: float | None = None
    #: How many items each ``track(..., resume=name)`` has finished; ``resume=True`` is named "".
    finished: Mapping[str, int] = field(default_factory=dict, hash=False)
    #: Fields that this release does not know.
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that ``from_dict`` reads, without what is empty."""
        document = dict(self.extra)
        if self.attempt:
            document |= {"value": self.value, "run": self.attempt, "at": self.at}
        if self.finished:
            document["finished"] = dict(self.finished)
        return document

    @classmethod
    def from_dict(cls, value: object) -> Checkpoint:
        """The checkpoint that ``to_dict`` gave; keys that this release does not know are kept.

        Raises:
            TypeError: it is none.
        """
        if not isinstance(value, dict):
            raise TypeError(f"{brief(value)} is no checkpoint")
        document = dict(value)
        finished = document.pop("finished", {})
        if not isinstance(finished, dict):
            raise TypeError(f"{brief(finished)} does not say what is finished")
        return cls(
            value=document.pop("value", None),
            attempt=_count(document.pop("run", 0)),
            at=_moment(document.pop("at", None)),
            finished={name: _count(items) for name, items in finished.items()},
            extra=document,
        )


_NOTHING: Final = Checkpoint()


def with_value(left: Checkpoint | None, value: Any, *, attempt: int, at: float) -> Checkpoint:
    """``left``, and in place of its value the one that a run gave."""
    return replace(left or _NOTHING, value=value, attempt=attempt, at=at)


def with_finished(left: Checkpoint | None, finished: Mapping[str, int]) -> Checkpoint | None:
    """``left``, and what the tracks of a run have ``finished`` since."""
    if not finished:
        return left
    left = left or _NOTHING
    return changed(left, finished={**left.finished, **finished})


def checked_value(value: object, record_bytes: int) -> Any:
    """A copy of ``value`` as JSON has it.

    Raises:
        InvalidInput: it is no JSON.
        PayloadTooLarge: it takes more than a quarter of ``record_bytes``.
    """
    try:
        check_nesting(value)
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidInput(f"checkpoint is no JSON ({exc})", "checkpoint", value, "JSON") from exc
    limit = record_bytes // SHARE
    if size > limit:
        raise PayloadTooLarge("checkpoint too large", "checkpoint", size, f"at most {limit} bytes")
    return json.loads(text)


def name_of(resume: object) -> str:
    """The name under which a track resumes.

    Raises:
        InvalidInput: ``resume`` is neither True nor a name.
    """
    if resume is True:
        return ""
    if (
        not isinstance(resume, str)
        or not resume.isprintable()
        or not 0 < len(resume) <= NAME_LENGTH
    ):
        rule = f"True, or a printable str of 1 to {NAME_LENGTH} characters"
        raise InvalidInput("no name", "resume", resume, rule)
    return resume


def check_new(name: str, names: list[str]) -> None:
    """Return if a track may resume under ``name`` beside those of ``names``.

    Raises:
        InvalidInput: another does, or they are too many.
    """
    if name in names:
        what = "a second track of one run that resumes under this name"
        raise InvalidInput(what, "resume", name or True, "a name of its own for each")
    if len(names) >= NAMES:
        raise InvalidInput("too many tracks that resume", "resume", name, f"at most {NAMES} a run")


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        raise TypeError(f"{brief(value)} is no count")
    return value


def _moment(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"{brief(value)} is no time")
    return float(value)

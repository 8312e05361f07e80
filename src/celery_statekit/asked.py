"""Asked: what somebody has asked of a task from outside, for its run to see at its next state call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from celery_statekit.errors import brief

CANCEL: Final = "cancel"
PAUSE: Final = "pause"
#: What may be asked of a task.
WHAT: Final = (CANCEL, PAUSE)

#: What became of it: the run will see it; the task was not running, and has ended; it goes on; the
#: same, or a cancel, was asked before; it has ended already; it was not paused.
Answer: TypeAlias = Literal["asked", "revoked", "resumed", "again", "ended", "not paused"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked of a task: to end, or to wait until it is resumed."""

    #: ``cancel`` or ``pause``.
    what: str
    #: Why, in words.
    reason: str = ""
    #: Who asked; "" where that was not said.
    by: str = ""
    #: When it was asked, in seconds since the epoch, by the writer's clock.
    at: float | None = None
    #: Whether it was heeded: the run waits, or was told to end. Of a task that has ended: whether all
    #: that hangs on it, chain, chord and errbacks, was told; if it did not run, when its message comes.
    seen: bool = False
    #: Fields that this release does not know.
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        by = f" by {self.by}" if self.by else ""
        return f"{self.what}{by}{f': {self.reason}' if self.reason else ''}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that ``from_dict`` reads, without what is empty."""
        told = {"why": self.reason, "by": self.by, "at": self.at, "seen": self.seen}
        given = {name: value for name, value in told.items() if value}
        return {**self.extra, "what": self.what, **given}

    @classmethod
    def from_dict(cls, value: object) -> Asked:
        """What ``to_dict`` gave; keys, and things asked, that this release does not know are kept.

        Raises:
            TypeError: it is none.
        """
        if not isinstance(value, dict):
            raise TypeError(f"{brief(value)} says nothing that was asked")
        document = dict(value)
        return cls(
            what=_text(document.pop("what", None)),
            reason=_text(document.pop("why", "")),
            by=_text(document.pop("by", "")),
            at=_moment(document.pop("at", None)),
            seen=document.pop("seen", False) is True,
            extra=document,
        )


def left_of(asked: Asked | None, *, ends: bool) -> Asked | None:
    """What is left of ``asked`` when a run is over: a pause is there for the next one."""
    if asked is None or (ends and asked.what == PAUSE):
        return None
    return replace(asked, seen=False)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{brief(value)} is no text")
    return value


def _moment(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"{brief(value)} is no time")
    return float(value)

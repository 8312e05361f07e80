"""What ``celery -A proj statekit cancel``, ``pause`` and ``resume`` do, and say."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from celery import Celery

from celery_statekit import asking
from celery_statekit.errors import UnknownTask, one_line
from celery_statekit.tracker import Answered

#: What became of it, in words, by what was answered.
_WORDS: Final = {
    "asked": "asked to {what}: its run sees it at its next state call",
    "revoked": "was not running, and has ended as REVOKED",
    "resumed": "goes on",
    "again": "nothing changed: {asked} stands already",
    "ended": "nothing changed: it has ended as {state}",
    "not paused": "nothing changed: it is not paused",
    "unknown": "nobody knows it",
}


@dataclass(frozen=True, kw_only=True)
class Told:
    """What became of one id."""

    id: str
    #: As :data:`~celery_statekit.asked.Answer` has it, or ``unknown``.
    answer: str
    #: Where the task stands.
    state: str
    #: In words.
    said: str

    @property
    def code(self) -> int:
        """The exit code: 0, it was asked; 1, nothing changed; 2, nobody knows the id."""
        return {"asked": 0, "revoked": 0, "resumed": 0, "unknown": 2}.get(self.answer, 1)


def cancel(app: Celery, ids: Iterable[str], *, reason: str, by: str, hard: bool) -> list[Told]:
    """Cancel each of ``ids``."""

    def ask(id: str) -> Answered:
        return asking.cancel(app, id, reason, by=by, hard=hard, backend=app.backend)

    return _each(ids, ask, "end")


def pause(app: Celery, ids: Iterable[str], *, reason: str, by: str) -> list[Told]:
    """Pause each of ``ids``."""
    return _each(ids, lambda id: asking.pause(app, id, reason, by=by), "wait")


def resume(app: Celery, ids: Iterable[str], *, by: str) -> list[Told]:
    """Resume each of ``ids``."""
    return _each(ids, lambda id: asking.resume(app, id, by=by), "go on")


def _each(ids: Iterable[str], ask: Callable[[str], Answered], what: str) -> list[Told]:
    return [_told(id, ask, what) for id in dict.fromkeys(ids)]


def _told(id: str, ask: Callable[[str], Answered], what: str) -> Told:
    try:
        answer, state = ask(id)
    except UnknownTask:
        return Told(id=id, answer="unknown", state="UNKNOWN", said=_WORDS["unknown"])
    said = _WORDS[answer].format(what=what, asked=state.asked, state=state.state)
    return Told(id=id, answer=answer, state=state.state, said=said)


def lines(told: Iterable[Told]) -> list[str]:
    """One line for each id."""
    return [f"{one_line(each.id, 200)}  {one_line(each.said, 990)}" for each in told]


def report(told: Iterable[Told]) -> str:
    """The same as one JSON object."""
    tasks: list[dict[str, Any]] = [asdict(each) for each in told]
    return json.dumps({"tasks": tasks})


def operator() -> str:
    """The user of the operating system; "" where there is none, or none that may be said."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # KeyError: Python before 3.13
        return ""
    return name if name.isprintable() and len(name.encode()) <= 200 else ""

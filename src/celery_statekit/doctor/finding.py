"""Finding: one line of what was found, and of what to change."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from celery import Celery

from celery_statekit.errors import LINE, InvalidSetting, one_line

#: User and password of a URL, wherever it stands in a text, but for "redis://[user:password@]".
#: A password that should have been quoted may hold a slash or an @.
_CREDENTIALS: Final = re.compile(r"://(?!\[user:password@\])(?:[^/\s:@]*:\S*|[^/\s@]+)@")
#: What to do about a server that does not answer, or not us.
REACH: Final = "see that it runs and lets its user in"


class Level(Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    MUST = "must change"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says; one line each, and no password."""

    level: Level
    #: What was looked at: ``store``, ``redis.eviction``.
    name: str
    found: str
    #: The exact line to change; "" where nothing need be.
    change: str = ""

    def __post_init__(self) -> None:
        for part in ("found", "change"):
            shown = _CREDENTIALS.sub("://***@", getattr(self, part))
            object.__setattr__(self, part, one_line(shown, LINE))

    @classmethod
    def ok(cls, name: str, found: str) -> Finding:
        """As it should be."""
        return cls(Level.OK, name, found)

    @classmethod
    def warning(cls, name: str, found: str, change: str = "") -> Finding:
        """It works, with a price that may be meant."""
        return cls(Level.WARNING, name, found, change)

    @classmethod
    def must(cls, name: str, found: str, change: str) -> Finding:
        """It does not do what it promises until it is changed."""
        return cls(Level.MUST, name, found, change)

    @classmethod
    def fault(cls, name: str, exc: InvalidSetting) -> Finding:
        """A setting that cannot be obeyed."""
        return cls.must(name, f"{exc.path}: {exc.what}; got {exc.got}", f"allowed: {exc.allowed}")

    @property
    def must_change(self) -> bool:
        """Whether it is at the highest level."""
        return self.level is Level.MUST

    def to_dict(self) -> dict[str, str]:
        """As plain JSON."""
        return {
            "level": self.level.value,
            "name": self.name,
            "found": self.found,
            "change": self.change,
        }


def line(app: Celery, name: str, value: Any) -> str:
    """The line that gives the app's setting a value, where the app keeps its settings."""
    if app.namespace:
        return f"{app.namespace}_{name}".upper() + f" = {value!r}"
    return f"app.conf.{name} = {value!r}"

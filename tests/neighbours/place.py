"""Where one run of the app with its neighbours takes place, told to its processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ENVIRONMENT = "STATEKIT_NEIGHBOURS_PLACE"


@dataclass(frozen=True, kw_only=True)
class Place:
    """One run: nothing of it is shared with another."""

    #: Prefix of every key and queue.
    name: str
    #: Holds the database, the marks, the logs and what was witnessed.
    folder: str
    redis_url: str
    #: Where Celery keeps results: ``django`` or ``redis``.
    results: str
    #: Whether the app is set up with the library; without it the neighbours are among themselves.
    with_statekit: bool

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Place:
        return cls(**json.loads(text))

    def mark(self, name: str) -> Path:
        """The file whose being there tells another process something."""
        return Path(self.folder, f"{name}.mark")

    def note(self, file: str, line: dict[str, Any]) -> None:
        """Append a line; processes do not tear each other's."""
        with Path(self.folder, file).open("ab", buffering=0) as lines:
            lines.write(json.dumps(line, default=str).encode() + b"\n")

    def noted(self, file: str) -> list[dict[str, Any]]:
        """Every line of all processes."""
        path = Path(self.folder, file)
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

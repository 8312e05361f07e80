"""What a worker's process of a test runs: the app's own worker, in the place that the test says.

It ends with the test's process, however that ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.app.utils import find_app

from celery_statekit.record import Limits
from celery_statekit.settings import Settings, unwrapped
from celery_statekit.stores import SQLiteStore, Store
from celery_statekit.testing.redirect import redirected
from celery_statekit.testing.results import FolderResults
from celery_statekit.testing.transport import Folder


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a test and the processes of its worker meet."""

    #: Where the app is, as ``celery -A`` has it.
    app: str
    #: A folder for messages, results and records; None: the servers that the app names.
    folder: str | None
    progress_interval: float
    lease: float

    def to_json(self) -> str:
        """For the worker's process."""
        return json.dumps(asdict(self))

    def found_app(self) -> Celery:
        """The app, imported."""
        found: Celery = unwrapped(find_app(self.app))
        return found

    def enter(self, app: Celery, stack: ExitStack) -> Settings:
        """Have ``app`` use this place until ``stack`` is left."""
        if self.folder is None:
            return Settings.of(app)
        folder = Path(self.folder)

        def make_store(limits: Limits) -> Store:
            return SQLiteStore(folder / "states.db", limits)

        return stack.enter_context(
            redirected(
                app,
                connect=Folder(folder / "messages").connect,
                make_backend=lambda app: FolderResults(app, folder=folder / "results"),
                make_store=make_store,
                progress_interval=self.progress_interval,
                lease=self.lease,
            )
        )


def _end_with_the_test() -> None:
    """The test holds the other end of this process's input, and nobody else does."""
    # Not by sys.stdin, whose lock a forked child would wait for when it closes it.
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def main(place: Place, ready: str, arguments: list[str]) -> None:
    """Run the worker; the file ``ready`` is there when it takes tasks."""
    threading.Thread(target=_end_with_the_test, daemon=True).start()
    app = place.found_app()

    def say_ready(**_: Any) -> None:
        Path(ready).touch()

    signals.worker_ready.connect(say_ready, weak=False)
    with ExitStack() as stack:
        place.enter(app, stack)
        app.worker_main(["worker", *arguments])


if __name__ == "__main__":
    main(Place(**json.loads(sys.argv[1])), sys.argv[2], sys.argv[3:])

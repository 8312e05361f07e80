"""The main job on real input, with no server: ``python -m celery_statekit.demo``.

A worker inside this process (Celery's memory broker) and an SQLite store run a task that indexes
every source file of this Python's standard library, through declared states, while you watch.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from celery import Celery
from celery.contrib.testing.worker import start_worker

from celery_statekit import Clients, ClientState, StatefulResult, StatefulTask, States, TaskState
from celery_statekit.errors import IllegalTransition
from celery_statekit.states import Flow

NAME = re.compile(r"[A-Za-z_]\w+")


class Indexing(States):
    """What the task goes through."""

    FINDING = "Finding the source files"
    READING = "Reading them"
    RANKING = "Ranking the names"


class Asking(States):
    """Where the client who asked stands."""

    ASKED = "Has asked"
    WAITING = "Is waiting"
    ANSWERED = "Has the answer"


class Reader(ClientState, states=Asking):
    """The client who asked for the index."""

    files: int = 0
    lines: int = 0
    names: dict[str, int] = {}  # noqa: RUF012 - copied for each client


app = Celery("demo", broker="memory://", backend="cache+memory://", set_as_current=False)
app.conf.update(
    broker_transport_options={"polling_interval": 0.01},
    worker_hijack_root_logger=False,
    worker_log_color=False,
)


@app.task(bind=True, base=StatefulTask, states=Indexing, name="demo.index")
def index(self: StatefulTask, folder: str, reader: str) -> int:
    """Count, for every name below ``folder``, the source files that it stands in."""
    readers = self.clients(Reader)
    readers.update(reader, lambda client: client.enter(Asking.WAITING), once="begin")
    self.enter(Indexing.FINDING)
    files = [
        path
        for path in self.track(Path(folder).rglob("*.py"), "looking")
        if "site-packages" not in path.parts
    ]
    self.enter(Indexing.READING, reason=f"{len(files)} files")
    names: Counter[str] = Counter()
    lines = 0
    for path in self.track(files, "reading"):
        text = path.read_text(encoding="utf-8", errors="replace")
        lines += text.count("\n")
        names.update(set(NAME.findall(text)))
    try:
        self.enter(Indexing.FINDING)
    except IllegalTransition as refused:
        print(f"\n  refused: {refused}\n", file=sys.__stdout__, flush=True)
    self.enter(Indexing.RANKING)

    def answer(client: Reader) -> None:
        client.files, client.lines = len(files), lines
        client.names = dict(names.most_common(5))
        client.enter(Asking.ANSWERED, reason="indexed")

    readers.update(reader, answer, once="answer")
    return len(names)


def show(states: Iterator[TaskState]) -> None:
    """Print the states as they come: one moving line on a terminal, else a line a state."""
    moving = sys.stdout.isatty()
    last = ""
    for state in states:
        line = f"  {state.state:9} {state.progress or ''}"
        if moving:
            print(f"\r\x1b[K{line}", end="", flush=True)
        elif state.state != last:
            print(line, flush=True)
        last = state.state
    print()


def table(result: StatefulResult[int]) -> str:
    """The task's history, as a Markdown table."""
    began = 0.0
    lines = ["| # | from | to | after | reason |", "|--:|------|----|------:|--------|"]
    for change in result.history():
        began = began or change.at
        lines.append(
            f"| {change.number} | {change.from_state} | {change.to_state} "
            f"| {change.at - began:.2f} s | {change.reason} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the demo."""
    library = sysconfig.get_path("stdlib")
    say = print
    with tempfile.TemporaryDirectory(prefix="statekit-demo-") as folder:
        app.conf.statekit_store = f"sqlite:///{folder}/states.db"
        readers = Clients(app, Reader)
        readers.create("newcomer")
        say(f"Indexing the standard library of this Python: {library}\n")
        with start_worker(app, pool="solo", perform_ping_check=False, loglevel="ERROR"):
            result = index.delay(library, "newcomer")
            show(result.watch(timeout=300))
            names = result.get(timeout=10)
        say(f"{names} names indexed.\n\nThe client who asked, as JSON:\n")
        say(readers.get("newcomer").to_json())
        say(f"\nThe task's history:\n\n{table(result)}\n\nIts flow, as a Mermaid diagram:\n")
        say(Flow.of(Indexing).mermaid())


if __name__ == "__main__":
    main()

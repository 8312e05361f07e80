"""Where workers are broken: their servers, the workers, and the tasks that are sent to them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from celery import Celery, chain, chord
from celery.result import AsyncResult
from celery.signals import after_task_publish
from redis import Redis
from tests.servers import RedisServer, Server

from celery_statekit import TaskState
from celery_statekit.settings import Settings
from celery_statekit.testing.bootstrap import Place
from celery_statekit.testing.process import WorkerProcess

#: With which kombu looks every second for messages that nobody acknowledged for four seconds,
#: rather than every 100 seconds for those of an hour (kombu 5.7 transport/redis.py:1063).
SOON: Final = {
    "visibility_timeout": 4,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    "unacked_mutex_expire": 2,  # a worker that is killed may hold it
}
#: Seconds after which what was to happen has not.
PATIENCE: Final = 60.0
#: Seconds for which nothing is seen of any message when the last one is done with.
CALM: Final = 0.5
#: Seconds between two looks.
POLL: Final = 0.02
#: How a task hangs together with others: nothing, the next of a chain, a chord's body, links.
SHAPES: Final = ("alone", "chain", "chord", "links")

MODULE: Final = "soak.lost.shop"


@dataclass(eq=False)
class Trial:
    """One task that is sent, and what is seen of it."""

    name: str
    shape: str
    #: Of the task that is broken.
    result: Any
    #: Of what comes after it, if Celery keeps one.
    whole: AsyncResult
    #: Of the other parts of its chord.
    others: list[Any] = field(default_factory=list)
    #: Every state that a reader has seen, in order.
    seen: list[str] = field(default_factory=list)
    #: When its owner was killed, in which attempt, and how long it took until a reader knew.
    killed: float | None = None
    attempt: int = 0
    truth: float | None = None

    def look(self) -> TaskState:
        """The state as a reader sees it now."""
        state: TaskState = self.result.task_state
        if self.seen[-1:] != [state.state]:
            self.seen.append(state.state)
        known = state.state == "LOST" or state.final or state.attempt > self.attempt
        if self.killed is not None and self.truth is None and known:
            self.truth = time.monotonic() - self.killed
        return state

    def strike(self) -> None:
        """Now its owner is killed."""
        self.attempt, self.truth = self.look().attempt, None
        self.killed = time.monotonic()


class Yard:
    """Servers, workers and tasks of a few trials.

    Args:
        folder: for what tasks write down.
        broker: its server.
        results: of a Redis for results and records; the broker's where that is one.
        apart: keep the records in another database than the results: two writes, not one.
        lease: seconds.
        grace: seconds for which a task is LOST before it fails.
    """

    def __init__(
        self,
        folder: Path,
        broker: Server,
        results: RedisServer | None = None,
        *,
        apart: bool = False,
        lease: float = 2.0,
        grace: float = 1.0,
        options: dict[str, Any] | None = None,
    ) -> None:
        over_redis = isinstance(broker, RedisServer)
        self._home = results or broker
        self.folder, self.broker, self.lease, self.grace = folder, broker, lease, grace
        self._over_redis = over_redis
        base = self._home.url.rpartition("/")[0]
        place = {
            "folder": str(folder),
            "broker": broker.url,
            "results": f"{base}/1",
            "store": f"{base}/{2 if apart else 1}",
            "transport_options": {**SOON, **(options or {})} if over_redis else {},
            "lease": lease,
            "grace": grace,
        }
        os.environ["STATEKIT_LOST_PLACE"] = json.dumps(place)
        sys.modules.pop(MODULE, None)  # the app of another yard
        self.app: Celery = self._place.found_app()
        self._backends: list[Any] = []
        self.app._get_backend = self._new_backend  # noqa: SLF001
        self._workers: list[WorkerProcess] = []
        self._count = 0

    @property
    def queues(self) -> list[str]:
        """The names of its queues; the first is where tasks are sent."""
        return [*self.app.amqp.queues]

    @property
    def _place(self) -> Place:
        return Place(app=f"{MODULE}:app", folder=None, progress_interval=0.1, lease=self.lease)

    def _new_backend(self) -> Any:
        self._backends.append(Celery._get_backend(self.app))  # noqa: SLF001
        return self._backends[-1]

    # --- workers ------------------------------------------------------------------------------

    def worker(
        self,
        pool: str = "prefork",
        concurrency: int = 6,
        *words: str,
        before: str = "",
    ) -> WorkerProcess:
        """Start a worker; ``before`` is what it carries out before anything is imported."""
        self._count += 1
        name = f"w{self._count}"
        folder = self.folder / name
        folder.mkdir()
        arguments = [f"--pool={pool}", f"--concurrency={concurrency}", "--loglevel=INFO"]
        arguments += [f"--hostname={name}@lost", "--without-gossip", "--without-mingle"]
        worker = WorkerProcess(
            self._place,
            folder,
            arguments=[*arguments, *words],
            environment=self._beginning(before, folder) if before else {},
            patience=PATIENCE,
        )
        self._workers.append(worker)
        worker.start()
        return worker

    @staticmethod
    def _beginning(before: str, folder: Path) -> dict[str, str]:
        """Variables by which Python begins with these lines."""
        (folder / "sitecustomize.py").write_text(before)
        paths = [str(folder), str(Path.cwd()), *filter(None, sys.path)]
        return {"PYTHONPATH": os.pathsep.join(paths)}

    @contextmanager
    def meanwhile(self, start: Callable[[], Any]) -> Iterator[list[Any]]:
        """Have something start while the body runs; what it gave, at the end."""
        gave: list[Any] = []
        wrong: list[BaseException] = []

        def run() -> None:
            try:
                gave.append(start())
            except BaseException as exc:  # noqa: BLE001 - raised below
                wrong.append(exc)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield gave
        thread.join()
        if wrong:
            raise wrong[0]

    def node(self, worker: WorkerProcess) -> str:
        """What the records call it."""
        return f"{worker.log.parent.name}@lost"

    def signal(self, worker: WorkerProcess, number: int) -> None:
        """Send a signal to all processes of a worker."""
        os.killpg(worker.pid, number)

    def kill(self, worker: WorkerProcess, trials: Sequence[Trial]) -> None:
        """Kill -9 a worker and all its children, the owner of these tasks."""
        for trial in trials:
            trial.strike()
        os.killpg(worker.pid, signal.SIGKILL)
        worker.kill()

    # --- tasks --------------------------------------------------------------------------------

    def send(
        self,
        task: str = "late",
        *,
        shapes: Sequence[str] = SHAPES,
        held: Sequence[int] = (1,),
        arguments: Sequence[Any] | None = None,
        count: int = 0,
    ) -> list[Trial]:
        """Send a task in each shape; each second one talks of its progress."""
        trials = []
        for number, shape in enumerate(shapes):
            self._count += 1
            name = f"t{self._count}"
            words = (list(held),) if arguments is None else tuple(arguments)
            named = {} if arguments is not None else {"talks": bool((number + count) % 2)}
            first = self.app.tasks[task].s(name, *words, **named)
            trials.append(self._sent(name, shape, first))
        return trials

    def _sent(self, name: str, shape: str, first: Any) -> Trial:
        tasks = self.app.tasks
        after, failed = tasks["after"].s(name=name), tasks["failed"].s(name=name)
        if shape == "chain":
            whole = chain(first, after).apply_async(link_error=failed)
            return Trial(name, shape, whole.parent, whole)
        if shape == "chord":
            whole = chord([first, tasks["quick"].si()])(after.on_error(failed))
            return Trial(name, shape, whole.parent[0], whole, [*whole.parent][1:])
        options = {"link": after, "link_error": failed} if shape == "links" else {}
        result = first.apply_async(**options)
        return Trial(name, shape, result, result)

    def send_twice(self, send: Callable[[], list[Trial]], queue: str) -> list[Trial]:
        """Publish each message a second time, as who has lost the broker's reply does."""
        messages: list[dict[str, Any]] = []

        def note(headers: Any, body: Any, **_: Any) -> None:
            messages.append({"headers": headers, "body": body})

        after_task_publish.connect(note)
        try:
            trials = send()
        finally:
            after_task_publish.disconnect(note)
        with self.app.producer_pool.acquire(block=True) as producer:
            for message in messages:
                id = message["headers"]["id"]
                producer.publish(
                    message["body"], headers=message["headers"], exchange=queue, routing_key=queue,
                    serializer="json", correlation_id=id,
                )  # fmt: skip
        return trials

    def open(self, trials: Sequence[Trial], attempt: int = 1) -> None:
        """Let the runs of this attempt go on, now or later."""
        for trial in trials:
            (self.folder / f"{trial.name}.{attempt}").touch()

    def book(self, book: str) -> Counter[str]:
        """How often each line was written down."""
        file = self.folder / book
        return Counter(file.read_text().splitlines() if file.exists() else [])

    def begun(self, trials: Sequence[Trial], attempt: int = 1, *, others: bool = True) -> None:
        """Wait until all of them run, by this attempt, and the ``others`` of their chords have."""
        self.until(
            lambda: all(self.book("begun")[f"{trial.name} {attempt}"] for trial in trials),
            f"attempt {attempt} of each",
        )
        if others:
            self.until(lambda: all(map(self._is_alone, trials)), "the other parts of chords")

    def _is_alone(self, trial: Trial) -> bool:
        """Whether the other parts of its chord have been counted."""
        if not trial.others:
            return True
        backend = self.app.backend
        key = backend.get_key_for_group(trial.whole.parent.id, ".j")
        return bool(backend.client.zcard(key) >= len(trial.others))

    def known(self, worker: WorkerProcess, trials: Sequence[Trial]) -> None:
        """Wait until the main process of a worker has heard of these runs of its children."""
        node = self.node(worker)
        inspect = self.app.control.inspect([node], timeout=2.0, limit=1)

        def are_known() -> bool:
            active = {request["id"] for request in (inspect.active() or {}).get(node, [])}
            return active >= {trial.result.id for trial in trials}

        self.until(are_known, "that the worker knows what it runs")

    def until(self, happened: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """What ``happened`` gives, as soon as that is true.

        Raises:
            TimeoutError: it has not happened in time.
        """
        deadline = time.monotonic() + seconds
        while not (gave := happened()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"in vain was waited for {what}\n{self.printed()}")
            time.sleep(POLL)
        return gave

    def printed(self) -> str:
        """The last lines of each worker."""
        lines = []
        for worker in self._workers:
            text = worker.log.read_text("utf-8", "replace") if worker.log.exists() else ""
            lines += [f"--- {worker.log}", *text.splitlines()[-25:]]
        return "\n".join(lines)

    def lost(self, trials: Sequence[Trial]) -> None:
        """Wait until a reader sees of all of them that their owner is gone."""
        self.until(lambda: not sum(not is_known(trial) for trial in trials), "LOST")

    def ended(self, trials: Sequence[Trial]) -> None:
        """Wait until all have ended; they are looked at all the time."""
        # Each is looked at each time, so that none that passes a state is missed.
        self.until(lambda: not sum(not trial.look().final for trial in trials), "the end of each")

    def watch(self, trials: Sequence[Trial], seconds: float) -> None:
        """Look at them all the time, for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for trial in trials:
                trial.look()
            time.sleep(POLL)

    def drained(self) -> None:
        """Wait until no message is left, held or queued."""
        if not self._over_redis:
            time.sleep(2 * self.lease)
            return
        with Redis.from_url(self.broker.url) as server:

            def is_empty() -> bool:
                # One that is on its way from here to there is in neither, for a moment.
                deadline = time.monotonic() + CALM
                while time.monotonic() < deadline:
                    if server.hlen("unacked") or any(server.llen(name) for name in self.queues):
                        return False
                    time.sleep(POLL)
                return True

            self.until(is_empty, "the last message")

    # --- its end ------------------------------------------------------------------------------

    def close(self) -> None:
        """End all workers, and leave no connection."""
        for worker in self._workers:
            worker.kill()
        for backend in self._backends:
            if hasattr(backend, "result_consumer"):
                backend.result_consumer.stop()
                backend.result_consumer._pubsub = None  # noqa: SLF001
                backend.client.connection_pool.disconnect()
        Settings.of(self.app).store.close()
        self.app.close()
        sys.modules.pop(MODULE, None)


def is_known(trial: Trial) -> bool:
    """Whether a reader has seen that its owner is gone."""
    trial.look()
    return trial.truth is not None


@contextmanager
def yard(
    folder: Path, broker: Server, results: RedisServer | None = None, **options: Any
) -> Iterator[Yard]:
    """A yard that is cleared at the end."""
    with ExitStack() as stack:
        made = Yard(folder, broker, results, **options)
        stack.callback(made.close)
        yield made

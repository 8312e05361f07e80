"""What is broken: one function each, which sends tasks, does its harm, and has it judged."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from tests.servers import RabbitMQServer, RedisServer, Server

from celery_statekit.errors import TaskLost
from celery_statekit.testing.process import WorkerProcess

from .judge import judge, steps_of
from .yard import PATIENCE, POLL, SHAPES, Trial, Yard, yard

AServer = TypeVar("AServer", bound=Server)

#: What a worker begins with whose clock is two hours ahead.
AHEAD: Final = "import time\ntrue = time.time\ntime.time = lambda: true() + 7200.0\n"
#: And one whose tasks are greenlets, as ``celery`` itself does; the thread that waits for the end
#: of the test is one too.
GREEN: Final = """
from gevent import monkey
monkey.patch_all()
import os
from gevent.os import tp_read
os.read = tp_read
"""


@dataclass
class Outcome:
    """What the trials of one scenario showed."""

    scenario: str
    trials: int = 0
    #: Writes of runs that were no longer the current one; each was refused.
    fenced: int = 0
    takeovers: int = 0
    #: Seconds from when an owner was killed, or stood still, until a reader knew.
    truths: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def broken(self, *rules: str) -> int:
        """How many faults there are of these rules."""
        return sum(fault.startswith(tuple(f"{rule}:" for rule in rules)) for fault in self.faults)


class Round:
    """One round of a scenario: a trial for each shape, on servers and workers of its own.

    Args:
        number: of the round; what may be one way or the other changes with it.
        shapes: of the tasks that are sent.
    """

    def __init__(
        self, outcome: Outcome, stack: ExitStack, number: int = 0, shapes: Sequence[str] = SHAPES
    ) -> None:
        self.number, self.shapes, self._outcome, self._stack = number, shapes, outcome, stack
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lost-"))
        self.folder = Path(folder)

    def server(self, kind: Callable[..., AServer], **options: Any) -> AServer:
        """A server of the round's own."""
        return self._stack.enter_context(kind(**options))

    def yard(
        self, broker: Server | None = None, results: RedisServer | None = None, **options: Any
    ) -> Yard:
        """A yard over one Redis, or over these; records and results are one write, or two."""
        broker = self.server(RedisServer) if broker is None else broker
        options.setdefault("apart", self.number % 2 == 1)
        return self._stack.enter_context(yard(self.folder, broker, results, **options))

    def worker(self, at: Yard, *words: str, pool: str = "prefork", **options: Any) -> WorkerProcess:
        """A worker that can run all trials at once."""
        return at.worker(pool, len(self.shapes) + 2, *words, **options)

    def send(self, at: Yard, task: str = "late", **options: Any) -> list[Trial]:
        """One trial of each shape, all of which have begun."""
        trials = at.send(task, shapes=self.shapes, count=self.number, **options)
        at.begun(trials)
        return trials

    def judge(
        self, at: Yard, trials: Sequence[Trial], end: str = "SUCCESS", runs: int | None = 1,
        *, drains: bool = True,
    ) -> None:  # fmt: skip
        """Wait until all is over, and judge it."""
        at.ended(trials)
        deadline = time.monotonic() + PATIENCE / 2
        while time.monotonic() < deadline and not all(
            at.book(step)[trial.name] >= wanted
            for trial in trials
            for step, wanted in steps_of(trial, end).items()
        ):
            time.sleep(POLL)
        if drains:
            at.drained()
        else:
            at.watch(trials, 2 * at.lease)
        outcome = self._outcome
        outcome.trials += len(trials)
        outcome.fenced += at.book("fenced").total()
        outcome.takeovers += sum(trial.look().attempt - 1 for trial in trials)
        outcome.truths += [trial.truth for trial in trials if trial.truth is not None]
        found = judge(at, trials, end=end, runs=runs)
        if found:
            found[-1] += f"\n{at.printed()}"
        outcome.faults += found


Scenario = Callable[[Round], None]
SCENARIOS: Final[dict[str, Scenario]] = {}


def scenario(function: Scenario) -> Scenario:
    """Name it by its function."""
    SCENARIOS[function.__name__.replace("_", " ")] = function
    return function


def run(name: str, number: int = 0, shapes: Sequence[str] = SHAPES) -> Outcome:
    """One round of a scenario.

    Raises:
        TimeoutError: what had to happen has not.
        ServerMissing: a server it needs is not installed.
    """
    outcome = Outcome(name)
    with ExitStack() as stack:
        SCENARIOS[name](Round(outcome, stack, number, shapes))
    return outcome


def stop(at: Yard, owner: WorkerProcess, trials: Sequence[Trial]) -> None:
    """Its owner stands still: no sign of life."""
    for trial in trials:
        trial.strike()
    at.signal(owner, signal.SIGSTOP)


def fenced(at: Yard, trials: Sequence[Trial], attempt: int = 1) -> None:
    """Wait until this run of each was refused."""
    at.until(
        lambda: all(at.book("fenced")[f"{trial.result.id} {attempt}"] for trial in trials),
        "that each is refused",
    )


# --- who stands still ----------------------------------------------------------------------------


@scenario
def stopped_while_another_runs(turn: Round) -> None:
    """SIGSTOP past the lease, takeover, SIGCONT: what the first run wants is refused."""
    at = turn.yard()
    owner = turn.worker(at)
    trials = turn.send(at, held=(1, 2))
    with at.meanwhile(lambda: turn.worker(at)):
        stop(at, owner, trials)
        at.lost(trials)
    at.begun(trials, 2)
    at.open(trials)
    at.signal(owner, signal.SIGCONT)
    fenced(at, trials)
    at.open(trials, 2)
    turn.judge(at, trials, runs=2)


@scenario
def stopped_until_another_has_ended(turn: Round) -> None:
    """The same, and the first run wakes when all is over."""
    at = turn.yard()
    owner = turn.worker(at)
    trials = turn.send(at)
    with at.meanwhile(lambda: turn.worker(at)):
        stop(at, owner, trials)
        at.lost(trials)
    at.ended(trials)
    at.open(trials)
    at.signal(owner, signal.SIGCONT)
    fenced(at, trials)
    turn.judge(at, trials, runs=2)


@scenario
def stopped_and_then_the_other_killed(turn: Round) -> None:
    """What the first run acknowledges when it wakes is not the takeover's message."""
    at = turn.yard()
    owner = turn.worker(at)
    trials = turn.send(at, held=(1, 2))
    with at.meanwhile(lambda: turn.worker(at)) as other:
        stop(at, owner, trials)
        at.lost(trials)
    at.begun(trials, 2)
    at.open(trials)
    at.signal(owner, signal.SIGCONT)
    fenced(at, trials)
    time.sleep(1.0)  # it has acknowledged by then
    at.kill(other[0], trials)
    at.lost(trials)
    turn.judge(at, trials, runs=3)


# --- who is delivered twice ----------------------------------------------------------------------


@scenario
def visibility_timeout(turn: Round) -> None:
    """Redis delivers again after two seconds what takes eight: it runs once."""
    at = turn.yard(options={"visibility_timeout": 2})
    with at.meanwhile(lambda: turn.worker(at)):
        turn.worker(at)
    trials = turn.send(at)
    at.watch(trials, 8.0)
    at.open(trials)
    turn.judge(at, trials)


@scenario
def clock_ahead(turn: Round) -> None:
    """A worker whose clock is two hours ahead takes what another one runs: it runs once."""
    at = turn.yard(options={"visibility_timeout": 3600})
    turn.worker(at)
    trials = turn.send(at)
    turn.worker(at, before=AHEAD)
    at.watch(trials, 2 * at.lease)
    at.until(lambda: "this delivery comes again" in at.printed(), "that it takes one")
    at.open(trials)
    # What it sends again is due in two hours.
    turn.judge(at, trials, drains=False)


@scenario
def published_twice(turn: Round) -> None:
    """The same message twice, as when the broker's reply is lost; each second time elsewhere."""
    at = turn.yard()
    queue = at.queues[turn.number % 2]
    with at.meanwhile(lambda: turn.worker(at, "-Q", at.queues[0])):
        turn.worker(at, "-Q", at.queues[1])
    trials = at.send_twice(lambda: at.send(shapes=turn.shapes), queue)
    at.begun(trials)
    at.watch(trials, 2 * at.lease)
    at.open(trials)
    turn.judge(at, trials)


# --- who is killed -------------------------------------------------------------------------------


@scenario
def child_killed(turn: Round) -> None:
    """Kill -9 of the pool's child: it is LOST at once, and runs again."""
    at = turn.yard()
    turn.worker(at)
    trials = turn.send(at)
    for trial in trials:
        child = int(trial.look().worker.rpartition(":")[2])
        trial.strike()
        os.kill(child, signal.SIGKILL)
    at.lost(trials)
    turn.judge(at, trials, runs=2)


@scenario
def worker_killed(turn: Round) -> None:
    """Kill -9 of a worker and its children: another one takes over."""
    at = turn.yard()
    owner = turn.worker(at)
    trials = turn.send(at)
    with at.meanwhile(lambda: turn.worker(at)):
        at.kill(owner, trials)
        at.lost(trials)
    turn.judge(at, trials, runs=2)


@scenario
def worker_killed_twice(turn: Round) -> None:
    """Of the owner, and then of who took over."""
    at = turn.yard()
    owner = turn.worker(at)
    trials = turn.send(at, held=(1, 2))
    with at.meanwhile(lambda: turn.worker(at)) as other:
        at.kill(owner, trials)
        at.lost(trials)
    at.begun(trials, 2)
    with at.meanwhile(lambda: turn.worker(at)):
        at.kill(other[0], trials)
        at.lost(trials)
    turn.judge(at, trials, runs=3)


@scenario
def worker_killed_early(turn: Round) -> None:
    """What was acknowledged early is LOST by its lease, and FAILURE by another worker's sweep."""
    at = turn.yard()
    owner = turn.worker(at)
    trials = turn.send(at, "early")
    at.kill(owner, trials)
    at.lost(trials)
    turn.worker(at)
    turn.judge(at, trials, "FAILURE")
    for trial in trials:
        try:
            trial.result.get(timeout=10.0)
        except TaskLost:
            continue
        raise AssertionError(f"{trial.name} has a result")


@scenario
def worker_killed_and_sent_again(turn: Round) -> None:
    """With ``on_lost="requeue"`` the sweep of another worker sends it again."""
    at = turn.yard()
    owner = turn.worker(at)
    trials = turn.send(at, "again")
    with at.meanwhile(lambda: turn.worker(at)):
        at.kill(owner, trials)
        at.lost(trials)
    turn.judge(at, trials, runs=2)


# --- which server is killed ----------------------------------------------------------------------


@scenario
def redis_as_broker_killed(turn: Round) -> None:
    """For longer than two leases, while tasks run: they are alive, and each ends once."""
    _broker_killed(turn, turn.server(RedisServer, appendonly=True, appendfsync="always"))


@scenario
def rabbitmq_killed(turn: Round) -> None:
    """The same."""
    _broker_killed(turn, turn.server(RabbitMQServer))


def _broker_killed(turn: Round, broker: Server) -> None:
    at = turn.yard(broker, turn.server(RedisServer))
    turn.worker(at)
    trials = turn.send(at)
    broker.kill()
    at.watch(trials, 2.5 * at.lease)
    broker.start()
    # Over Redis a worker does not survive that, and ends when its tasks have (celery 5.7).
    turn.worker(at)
    at.watch(trials, 2.5 * at.lease)
    at.open(trials)
    # What its connection of before had taken need not come again soon (kombu 5.7 transport/redis.py).
    turn.judge(at, trials, drains=False)


@scenario
def store_killed(turn: Round) -> None:
    """For longer than two leases, while tasks run: what lives is not LOST afterwards."""
    store = turn.server(RedisServer, appendonly=True, appendfsync="always")
    at = turn.yard(turn.server(RedisServer), store)
    with at.meanwhile(lambda: turn.worker(at)):
        turn.worker(at)
    trials = turn.send(at, ("late", "early")[turn.number % 2])
    store.kill()
    time.sleep(2.5 * at.lease)
    store.start()
    time.sleep(at.lease + 1.0)  # a breaker asks again after a while
    at.watch(trials, at.lease + at.grace + 1.0)
    at.open(trials)
    turn.judge(at, trials)


# --- who takes long, and who ends ----------------------------------------------------------------


@scenario
def interpreter_held(turn: Round) -> None:
    """One call of C that lasts for more than two leases, in a child: it lives."""
    at = turn.yard(lease=1.5)
    turn.worker(at)
    trials = turn.send(at, "count", arguments=[4 * at.lease])
    turn.judge(at, trials)


@scenario
def warm_shutdown(turn: Round) -> None:
    """SIGTERM while tasks run for longer than two leases: they end."""
    at = turn.yard()
    owner = turn.worker(at)
    trials = turn.send(at, ("late", "early")[turn.number % 2])
    os.kill(owner.pid, signal.SIGTERM)
    at.watch(trials, 2.5 * at.lease)
    at.open(trials)
    at.until(lambda: not owner.running, "the worker's end")
    turn.worker(at)
    turn.judge(at, trials)


@scenario
def cold_shutdown(turn: Round) -> None:
    """SIGQUIT: LOST at once, and run again at once by another worker."""
    at = turn.yard(lease=20.0)
    owner = turn.worker(at)
    trials = turn.send(at)
    at.known(owner, trials)
    with at.meanwhile(lambda: turn.worker(at)):
        _quit(owner, trials)
        at.lost(trials)
    turn.judge(at, trials, runs=2)


@scenario
def cold_shutdown_early(turn: Round) -> None:
    """SIGQUIT, and what was acknowledged early: LOST at once, FAILURE by the sweep of another."""
    at = turn.yard(lease=6.0)
    owner = turn.worker(at)
    trials = turn.send(at, "early")
    at.known(owner, trials)
    with at.meanwhile(lambda: turn.worker(at)):
        _quit(owner, trials)
        at.lost(trials)
    turn.judge(at, trials, "FAILURE")


def _quit(owner: WorkerProcess, trials: Sequence[Trial]) -> None:
    for trial in trials:
        trial.strike()
    os.kill(owner.pid, signal.SIGQUIT)


@scenario
def recycled_and_scaled(turn: Round) -> None:
    """A child for each task, more and fewer of them: short and long tasks, none is LOST."""
    at = turn.yard()
    at.worker("prefork", 2, "--max-tasks-per-child=1", f"--autoscale={len(turn.shapes) + 3},1")
    trials = at.send(shapes=turn.shapes)
    short = [*at.send(shapes=("alone",) * 20, held=()), *at.send("early", shapes=SHAPES, held=())]
    at.begun(trials)
    at.watch([*trials, *short], 2.5 * at.lease)
    at.open(trials)
    turn.judge(at, [*trials, *short])


# --- the other pools -----------------------------------------------------------------------------


@scenario
def threads_killed(turn: Round) -> None:
    """A pool of threads: its runs live for longer than a lease, and are taken over when it is killed."""
    _pool_killed(turn, "threads", turn.shapes)


@scenario
def gevent_killed(turn: Round) -> None:
    """A pool of greenlets, likewise."""
    _pool_killed(turn, "gevent", turn.shapes)


@scenario
def solo_killed(turn: Round) -> None:
    """A worker that runs one task at a time."""
    _pool_killed(turn, "solo", turn.shapes[turn.number % len(turn.shapes) :][:1])


def _pool_killed(turn: Round, pool: str, shapes: Sequence[str]) -> None:
    at = turn.yard()
    owner = turn.worker(at, pool=pool, before=GREEN if pool == "gevent" else "")
    trials = at.send(shapes=shapes, count=turn.number)
    at.begun(trials, others=pool != "solo")
    at.watch(trials, 1.75 * at.lease)
    alive = ["LOST" not in trial.seen for trial in trials]
    with at.meanwhile(lambda: turn.worker(at)):
        at.kill(owner, trials)
        at.lost(trials)
    turn.judge(at, trials, runs=2)
    if not all(alive):
        raise AssertionError(f"lost before it was killed: {[trial.seen for trial in trials]}")

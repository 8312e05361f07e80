"""A worker in a process of its own, to be stopped and killed; it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from celery import Celery
from celery.result import AsyncResult

from celery_statekit.record import TaskState
from celery_statekit.testing.bootstrap import Place
from celery_statekit.testing.transport import Folder

#: Seconds in which a worker has to come up, to end, and to run a task.
PATIENCE: Final = 30.0
#: Seconds in which what was killed is gone.
GONE: Final = 2.0
#: Seconds between two looks.
POLL: Final = 0.01
#: Seconds between two writes of progress, and two reads of who watches.
INTERVAL: Final = 0.02
#: Seconds after which the task of a worker that was killed may go on elsewhere.
LEASE: Final = 3.0
#: How many lines of what it printed stand in an error.
_SHOWN: Final = 40


class WorkerProcess:
    """A worker of an app in a process of its own; ``app`` here sends to it.

    Messages, results and records are files in a folder of the test, unless the app's own servers
    are wanted. What a worker had taken when it was killed comes again, as RabbitMQ would have it;
    with servers that is theirs to do.
    """

    def __init__(
        self,
        place: Place,
        folder: Path,
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self._place = place
        self._stack = ExitStack()
        self.app: Celery = place.found_app()
        self.settings = place.enter(self.app, self._stack)
        self.settings.watcher.poll = POLL
        self.patience = patience
        #: What it printed, of all its starts.
        self.log = folder / "worker.log"
        self._ready = folder / "ready"
        #: Variables for its next start, beside those of this process.
        self.environment = dict(environment or {})
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<WorkerProcess of {self._place.app}: {'runs' if self.running else 'ended'}>"

    @property
    def pid(self) -> int:
        """Id of its main process, which leads a process group."""
        assert self._process is not None, "it was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its main process lives."""
        return self._process is not None and _exit_code(self._process) is None

    def start(self) -> None:
        """Start it, and wait until it takes tasks; nothing happens where it runs.

        Raises:
            RuntimeError: it did not come up; with how it ended and what it printed last.
        """
        if self.running:
            return
        self._end()  # of one that died children may be left
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "celery_statekit.testing.bootstrap"]
        command += [self._place.to_json(), str(self._ready), *self._arguments]
        paths = [str(Path.cwd()), *filter(None, sys.path)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            **self.environment,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - words of ours
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + self.patience
        while not self._ready.exists():
            if not self.running:
                how = self._ending()
                self.kill()
                self._fail(f"the worker did not come up: {how}")
            if time.monotonic() > deadline:
                self.kill()
                self._fail(f"the worker did not come up within {self.patience:g} s, and was killed")
            time.sleep(POLL)

    def stop(self) -> None:
        """End it in order: it ends the tasks that it runs; after ``patience`` it is killed."""
        if self.running:
            os.kill(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + self.patience
            while time.monotonic() < deadline and self.running:
                time.sleep(POLL)
        self._end()

    def kill(self) -> None:
        """Kill -9 all its processes at once; what it had not acknowledged comes again."""
        self._end()
        if self._place.folder is not None:
            Folder(Path(self._place.folder) / "messages").give_all_back()

    def restart(self) -> None:
        """Kill it, and start another one."""
        self.kill()
        self.start()

    def wait(self, result: AsyncResult, timeout: float | None = None) -> TaskState:
        """The task's record at its end, when Celery's result has it too; or where it rests.

        Raises:
            RuntimeError: the worker has died meanwhile, or the task has not ended in time; with
                what the worker printed last.
        """
        ended: TaskState = self.until(
            lambda: self._ended(result), timeout, f"the end of {result.id}"
        )
        return ended

    def until(
        self,
        happened: Callable[[], Any],
        timeout: float | None = None,
        what: str = "what the test waits for",
    ) -> Any:
        """What ``happened`` gives, as soon as that is true.

        Raises:
            RuntimeError: the worker has died meanwhile, or it has not happened in time; with what
                the worker printed.
        """
        seconds = self.patience if timeout is None else timeout
        deadline = time.monotonic() + seconds
        while True:
            ran = self.running
            if gave := happened():
                return gave
            if not ran:
                self._fail(f"the worker has ended ({self._ending()}) before {what}")
            if time.monotonic() > deadline:
                self._fail(f"in vain was waited for {what}, for {seconds:g} s: the worker runs")
            time.sleep(POLL)

    def close(self) -> None:
        """End it, and have the app use its own servers again; nothing happens the second time."""
        try:
            if self._place.folder is None:
                self.stop()  # servers remember who left without a word
            else:
                self._end()
        finally:
            self._stack.close()

    def _ended(self, result: AsyncResult) -> TaskState | None:
        state = self.settings.watcher.get(result.id)
        over = state.final and state.source == "record" and result.ready()
        return state if over else None

    def _end(self) -> None:
        """Nothing of it lives any more."""
        process = self._process
        if process is None or process.stdin is None or process.stdin.closed:
            return
        if process.returncode is None:  # else its number may be a stranger's
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                # Its children may take a moment; one that nobody buries counts for ever.
                deadline = time.monotonic() + GONE
                while time.monotonic() < deadline:
                    os.killpg(process.pid, 0)
                    time.sleep(POLL)
        process.wait()
        process.stdin.close()

    def _ending(self) -> str:
        """How its main process ended."""
        code = None if self._process is None else _exit_code(self._process)
        if code is None:
            return "it was not started"
        return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    def _fail(self, what: str) -> NoReturn:
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        printed = text.splitlines()[-_SHOWN:]
        told = ["the last that it printed:", *printed] if printed else ["it printed nothing"]
        raise RuntimeError("\n".join([f"{what}; {told[0]}", *told[1:]]))


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """What it ended with, below 0 for a signal; None: it has not.

    It is not waited for: until then its number, which is that of its group, is nobody else's.
    """
    # Without it (macOS before Python 3.13) the children of one that died are left alone.
    if process.returncode is None and hasattr(os, "waitid"):
        with suppress(ChildProcessError):
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return None
            return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    return process.poll()


class WorkerProcessStarter:
    """What the fixture ``stateful_worker_process`` is: call it to start a worker."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._count = 0

    def __call__(
        self,
        app: str,
        *,
        pool: str = "solo",
        concurrency: int = 1,
        own_servers: bool = False,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> WorkerProcess:
        """Start a worker that runs until the test's end, or until it is stopped or killed.

        Args:
            app: where the app is, as ``celery -A`` has it: ``shop.tasks:app``.
            pool: any of Celery's.
            concurrency: how many tasks run at once.
            own_servers: broker, results and store are those that the app names; else they are
                files of the test.
            arguments: more of ``celery worker``: ``["-Q", "imports"]``.
            environment: variables for it, beside those of this process.
            patience: seconds in which it has to come up, to end, and to run a task.

        Raises:
            RuntimeError: it did not come up; with what it printed.
        """
        self._count += 1
        folder = self._folder / f"worker{self._count}"
        folder.mkdir()
        place = Place(
            app=app,
            folder=None if own_servers else str(self._folder / "place"),
            progress_interval=INTERVAL,
            lease=LEASE,
        )
        words = [f"--pool={pool}", f"--concurrency={concurrency}", "--loglevel=INFO"]
        words += [f"--hostname=worker{self._count}@test", "--without-gossip", "--without-mingle"]
        worker = WorkerProcess(
            place,
            folder,
            arguments=[*words, *arguments],
            environment=environment,
            patience=patience,
        )
        self._stack.callback(worker.close)
        worker.start()
        return worker

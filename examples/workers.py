"""The workers of an example: real ``celery worker`` processes, started and ended by its story.

.. code-block:: python

    from examples.classroom.app import app, first_action
    from examples.workers import arguments, running

    def main() -> None:
        with running(app, arguments(__doc__), workers=2) as workers:  # they are ready
            first_action.delay(...).get(timeout=30)
            late = workers.start(concurrency=4)  # one more
            late.kill()  # kill -9: its main process and all its children

``app = Celery("classroom")`` stands in ``examples/classroom/app.py``; its configuration is
``examples/celeryconfig.py``, in this process and in the workers'. However the block ends, the
workers end with it, also if this process is killed. If it raises, their logs are shown.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import kombu
from celery import Celery
from celery.signals import worker_ready
from kombu.connection import Connection
from kombu.exceptions import OperationalError

ROOT = Path(__file__).parents[1]
#: The URL of each broker, unless ``--url`` or the environment's ``EXAMPLE_URL`` gives another.
BROKERS = {
    "files": "filesystem://",
    "redis": "redis://localhost:6379/0",
    "rabbitmq": "amqp://guest:guest@localhost:5672//",
}
#: Seconds in which a worker comes up, or goes down.
PATIENCE = 30.0


def arguments(story: str | None) -> argparse.Namespace:
    """The options that every example has: ``broker`` and ``url``."""
    example = Path(sys.argv[0]).parent.name
    parser = argparse.ArgumentParser(prog=f"python -m examples.{example}", description=story)
    parser.add_argument("--broker", choices=BROKERS, default="files", help="default: %(default)s")
    parser.add_argument("--url", default=os.environ.get("EXAMPLE_URL"), help="where the server is")
    return parser.parse_args()


def wait_until(happened: Callable[[], object]) -> None:
    """Return when ``happened()`` is true.

    Raises:
        TimeoutError: it is not after 30 seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.1)


class Worker:
    """One worker, in a process group of its own."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._line, its_line = socket.socketpair()
        with log.open("wb") as output, its_line:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=its_line.fileno(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Return when it takes tasks."""
        self._line.settimeout(PATIENCE)
        with suppress(ConnectionError, TimeoutError):
            if self._line.recv(16):
                return
        raise RuntimeError(f"{self.name} did not come up")

    def wait_until_dead(self) -> None:
        """Return when it has been killed."""
        self.process.wait(PATIENCE)

    def kill(self) -> None:
        """End it with all its children, as a power cut would: ``kill -9``."""
        if self.process.returncode is None:  # else its number may be somebody else's by now
            os.killpg(self.process.pid, signal.SIGKILL)
            self.wait_until_dead()
        self._line.close()


class Workers:
    """The workers of one app, those that were killed included; iterate over them."""

    def __init__(self, app: Celery, folder: Path) -> None:
        self.app = app
        self._folder = folder
        self._all: list[Worker] = []

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._all)

    def start(self, *, concurrency: int = 2, include: str = "") -> Worker:
        """Start one more worker and wait until it is ready.

        Args:
            concurrency: how many tasks it runs at once, each in a process of its own.
            include: a module that it imports besides the app.
        """
        worker = self._start(concurrency, include)
        worker.wait_until_ready()
        return worker

    def wait_until_due(self) -> None:
        """Return when Redis may deliver again what a dead worker had, if only new workers look.

        kombu before 5.7 looks when a worker starts, and then every 100 seconds, whatever is said
        (kombu 5.6 transport/redis.py:410). Later ones look every second.
        """
        if os.environ["EXAMPLE_BROKER"] == "redis" and kombu.VERSION[:2] < (5, 7):
            time.sleep(float(os.environ["EXAMPLE_REDELIVER_AFTER"]))

    def start_many(self, number: int) -> None:
        """Start ``number`` workers at once and wait until all are ready."""
        for worker in [self._start() for _ in range(number)]:
            worker.wait_until_ready()

    def _start(self, concurrency: int = 2, include: str = "") -> Worker:
        name = f"worker{len(self._all) + 1}@{self.app.main}"
        command = [sys.executable, "-m", "celery", "-A", f"examples.{self.app.main}.app", "worker"]
        command += ["-n", name, "-c", str(concurrency), "-l", "INFO"]
        command += ["--without-gossip", "--without-mingle"]
        command += ["--include", ",".join(filter(None, [__name__, include]))]
        self._all.append(Worker(name, command, self._folder / f"{name}.log"))
        return self._all[-1]

    def stop(self) -> None:
        """End them all."""
        for worker in self._all:
            worker.kill()

    def show_logs(self) -> None:
        """Print the end of each worker's log."""
        for worker in self._all:
            lines = worker.log.read_text(errors="replace").splitlines()[-40:]
            print(f"--- log of {worker.name}", *lines, sep="\n", file=sys.stderr)


@contextmanager
def running(
    app: Celery, given: argparse.Namespace, workers: int = 1, *, redeliver_after: int = 3600
) -> Iterator[Workers]:
    """Start ``workers`` workers of ``app``, each with two processes; end them with the block.

    Args:
        app: its ``main`` is the example's name.
        given: what :func:`arguments` returned.
        workers: how many.
        redeliver_after: seconds after which Redis delivers again what is not acknowledged. The
            other brokers do so when a worker dies; Redis does not see that.
    """
    url = given.url or BROKERS[given.broker]
    if given.broker != "files":
        _check_server(url)
    folder = Path(tempfile.mkdtemp(prefix=f"example-{app.main}-"))
    for name in ("queued", "broker", "results"):
        (folder / name).mkdir()
    os.environ |= {
        "CELERY_CONFIG_MODULE": "examples.celeryconfig",
        "EXAMPLE_BROKER": given.broker,
        "EXAMPLE_URL": url,
        "EXAMPLE_FOLDER": str(folder),
        "EXAMPLE_PREFIX": f"example-{app.main}-{uuid.uuid4().hex[:8]}",
        "EXAMPLE_REDELIVER_AFTER": str(redeliver_after),
    }
    # Celery reads the variable once; this app may have been configured before.
    app.config_from_object(os.environ["CELERY_CONFIG_MODULE"])
    started = Workers(app, folder)
    try:
        started.start_many(workers)
        yield started
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        started.show_logs()
        raise
    finally:
        started.stop()
        if given.broker != "files":
            _leave_nothing(app)
        app.close()
        shutil.rmtree(folder)


def _check_server(url: str) -> None:
    """End the story where no server answers, and say so."""
    try:
        with Connection(url) as connection:
            connection.ensure_connection(max_retries=1, timeout=PATIENCE)
    except ImportError as exc:
        sys.exit(f'{exc}; pip install "celery-statekit[redis]"')
    except OperationalError as exc:
        sys.exit(f"no broker answers at {connection.as_uri()}: {exc}")


def _leave_nothing(app: Celery) -> None:
    """Delete from the server what this run has put there."""
    prefix = os.environ["EXAMPLE_PREFIX"]
    if os.environ["EXAMPLE_BROKER"] == "redis":
        keys = app.backend.client
        for key in keys.scan_iter(f"{prefix}*"):
            keys.delete(key)
        return
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        channel.queue_delete(prefix)
        for exchange in (prefix, f"{prefix}.events", f"{prefix}.pidbox", f"reply.{prefix}.pidbox"):
            channel.exchange_delete(exchange)


# --- in the worker's process ----------------------------------------------------------------------


@worker_ready.connect
def _say_ready(**_: object) -> None:
    """Tell the story that this worker is ready, and end when the story does."""
    line = socket.socket(fileno=os.dup(0))
    line.sendall(b"ready")

    def end_with_the_story() -> None:
        with suppress(ConnectionError):
            line.recv(1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_the_story, daemon=True).start()

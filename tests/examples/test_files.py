"""``examples/files.py``: the broker of files loses no message, and delivers none to two."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from kombu import Connection, Queue
from kombu.transport import TRANSPORT_ALIASES

ROOT: Final = Path(__file__).parents[2]
#: Seconds after which a message has not come.
PATIENCE: Final = 20.0

Connect = Callable[[], Connection]


@pytest.fixture
def connect(tmp_path, monkeypatch) -> Iterator[Connect]:
    """Connect to a broker in an empty folder."""
    monkeypatch.setitem(TRANSPORT_ALIASES, "filesystem", "examples.files:Transport")
    (tmp_path / "queued").mkdir()
    (tmp_path / "broker").mkdir()
    options = {
        "data_folder_in": tmp_path / "queued",
        "data_folder_out": tmp_path / "queued",
        "control_folder": tmp_path / "broker",
        "polling_interval": 0.001,
    }
    return lambda: Connection("filesystem://", transport_options=options)


def take(connection: Connection, queue: str) -> Any:
    """The next message of ``queue``, not acknowledged; None where it is empty."""
    return connection.default_channel.basic_get(queue)


def test_each_message_comes_once(connect):
    """What several publish at once several take, each message by one, none lost."""
    queue, each = Queue("orders"), 150
    taken: list[int] = []
    over = threading.Event()

    def publish(first: int) -> None:
        with connect() as connection:
            for number in range(first, first + each):
                connection.Producer().publish(number, routing_key="orders", declare=[queue])

    def consume() -> None:
        def receive(body: int, message: Any) -> None:
            taken.append(body)
            message.ack()

        with connect() as connection, connection.Consumer(queue, callbacks=[receive]):
            while not over.is_set():
                try:
                    connection.drain_events(timeout=0.01)
                except TimeoutError:
                    continue

    consumers = [threading.Thread(target=consume) for _ in range(3)]
    publishers = [threading.Thread(target=publish, args=[each * n]) for n in range(3)]
    for thread in [*consumers, *publishers]:
        thread.start()
    for thread in publishers:
        thread.join(PATIENCE)
    with connect() as connection:
        channel = connection.default_channel
        while channel._size("orders"):
            over.wait(0.01)
    over.set()
    for thread in consumers:
        thread.join(PATIENCE)

    assert sorted(taken) == [*range(3 * each)]


#: A consumer that takes two messages, acknowledges the first, and waits for its end.
DOOMED: Final = """
import signal, sys
from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES

TRANSPORT_ALIASES["filesystem"] = "examples.files:Transport"
options = {"data_folder_in": f"{sys.argv[1]}/queued", "control_folder": f"{sys.argv[1]}/broker"}
channel = Connection("filesystem://", transport_options=options).default_channel
channel.basic_get("orders").ack()
channel.basic_get("orders")
print("taken", flush=True)
signal.pause()
"""


def test_what_is_not_acknowledged_comes_again(connect, tmp_path):
    """A message that was taken by a process that is killed comes to another, marked as such."""
    queue = Queue("orders")
    with connect() as connection:
        for number in range(2):
            connection.Producer().publish(number, routing_key="orders", declare=[queue])
    command = [sys.executable, "-c", DOOMED, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as doomed:
        assert doomed.stdout.readline() == "taken\n"

        with connect() as connection:
            assert take(connection, "orders") is None  # it is the other's, who lives
            doomed.kill()
            doomed.wait()
            again = take(connection, "orders")
            assert (again.payload, again.delivery_info["redelivered"]) == (1, True)
            again.ack()
    with connect() as connection:
        assert take(connection, "orders") is None


def test_what_is_given_back_comes_again(connect):
    """A message that is rejected with requeue, or left by a connection that closes, comes again."""
    queue = Queue("orders")
    with connect() as connection:
        connection.Producer().publish("one", routing_key="orders", declare=[queue])
    with connect() as connection:
        take(connection, "orders").requeue()
        assert take(connection, "orders").payload == "one"
    with connect() as connection:
        again = take(connection, "orders")
        assert again.payload == "one"
        again.reject()
        assert take(connection, "orders") is None

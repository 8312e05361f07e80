"""What a process takes for a confirmed subscription, by a server that answers when it is told to."""

from __future__ import annotations

import queue
from typing import Any

import pytest

pytest.importorskip("redis")

from celery_statekit.errors import StoreUnavailable
from celery_statekit.stores.redis.listener import Listener


class Server:
    """One connection to a server that keeps the confirmations of a channel back."""

    name = "redis://scripted"
    timeout = 0.5

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.replies: queue.Queue[list[Any]] = queue.Queue()
        self.held: str | None = None
        self._taken: list[Any] | None = None

    def connect(self) -> Server:
        return self

    def disconnect(self) -> None:
        pass

    def ask(self, _key: str, _command: str, channel: str, message: str) -> None:
        self.replies.put([b"message", channel.encode(), message.encode()])

    def send_command(self, command: str, *channels: str) -> None:
        for channel in channels:
            self.sent.append((command, channel))
            if channel != self.held:
                self.replies.put([command.lower().encode(), channel.encode(), 1])

    def can_read(self, timeout: float) -> bool:
        if self._taken:
            self.replies.task_done()
            self._taken = None
        try:
            self._taken = self.replies.get(timeout=timeout)
        except queue.Empty:
            return False
        return True

    def read_response(self) -> list[Any]:
        assert self._taken
        return self._taken


def test_a_late_confirmation() -> None:
    """That of a subscription which was given up is not taken for that of a later one."""
    server = Server()
    listener = Listener(server)  # type: ignore[arg-type]
    listener.subscribe("other", print)
    server.held = "one"
    with pytest.raises(StoreUnavailable, match="confirms no subscription"):
        listener.subscribe("one", print)
    server.ask("", "PUBLISH", "other", "")  # it looks at what is wanted
    server.replies.join()

    server.held = None
    server.replies.put([b"subscribe", b"one", 1])
    server.replies.join()
    assert ("UNSUBSCRIBE", "one") in server.sent
    listener.subscribe("one", print)

    assert server.sent.count(("SUBSCRIBE", "one")) == 2
    listener.close()

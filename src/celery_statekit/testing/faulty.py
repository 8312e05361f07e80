"""Stores that fail on purpose, around a real one: what those above a store are tested with."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Literal, NoReturn, TypeAlias

from celery_statekit.errors import AmbiguousWrite, StoreUnavailable
from celery_statekit.record import Change, Limits, Record
from celery_statekit.stores.base import (
    UNLABELLED,
    Enumerates,
    Labels,
    Leases,
    Notifies,
    Posted,
    Posts,
    Renews,
    Store,
    WritesBeside,
)

#: What a failpoint does: raise StoreUnavailable (once a write was applied: AmbiguousWrite), raise
#: AmbiguousWrite, kill -9 or stop this process, or only take its time.
Mode: TypeAlias = Literal["error", "doubt", "kill", "stop", "delay"]

#: The calls that change something: only they can be in doubt.
CHANGES: Final = ("write", "write_beside", "post", "delete")
#: What a store may do beyond its protocol, and the calls by which it does.
CAPABILITIES: Final = (
    (Leases, ("acquire", "release")),
    (Renews, ("renew", "left")),
    (Enumerates, ("find", "count")),
    (Notifies, ("subscribe",)),
    (WritesBeside, ("write_beside",)),
    (Posts, ("post",)),
)


class _Around:
    """A store that is another one, but for what a subclass does about each call."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.name = store.name
        self.limits: Limits = store.limits
        # On the object, so that it is of a protocol exactly where the store is.
        for protocol, calls in CAPABILITIES:
            if isinstance(store, protocol):
                for call in calls:
                    setattr(self, call, partial(self._call, call))
        if isinstance(store, WritesBeside):
            self.reaches = store.reaches

    def _call(self, call: str, /, *args: Any, **kwargs: Any) -> Any:
        """Every call but ``close`` and ``reaches``."""
        return getattr(self.store, call)(*args, **kwargs)

    def read(self, key: str) -> Record | None:
        """As the store does."""
        record: Record | None = self._call("read", key)
        return record

    def write(
        self,
        record: Record,
        *,
        expect: Record | None,
        changes: Sequence[Change] = (),
        ttl: float | None = None,
        labels: Labels = UNLABELLED,
    ) -> bool:
        """As the store does."""
        written: bool = self._call(
            "write", record, expect=expect, changes=changes, ttl=ttl, labels=labels
        )
        return written

    def history(self, key: str, after: int = 0, limit: int = 100) -> list[Change]:
        """As the store does."""
        history: list[Change] = self._call("history", key, after, limit)
        return history

    def delete(self, key: str) -> bool:
        """As the store does."""
        deleted: bool = self._call("delete", key)
        return deleted

    def close(self) -> None:
        """As the store does; never fails."""
        self.store.close()


class _Failing:
    """A posted write that fails when its answer is asked for."""

    def __init__(self, posted: Posted | None, fail: Callable[[], object]) -> None:
        self._posted = posted
        self._fail = fail

    def is_written(self, seconds: float) -> bool:
        """Fail, after the store has answered if anything was sent to it."""
        written = self._posted is not None and self._posted.is_written(seconds)
        self._fail()
        return written


class LosesReplies(_Around):
    """A store of which some writes end in AmbiguousWrite.

    Args:
        store: the real one; closed with this.
        every: each how-many-th write, posted ones among them; 1: all.
        applied: whether such a write reaches the store; False: its request is what was lost.
    """

    def __init__(self, store: Store, every: int = 2, *, applied: bool = True) -> None:
        super().__init__(store)
        self.every = every
        self.applied = applied
        #: How many replies were lost so far.
        self.lost = 0
        self._writes = 0
        self._counting = threading.Lock()

    def _call(self, call: str, /, *args: Any, **kwargs: Any) -> Any:
        if call not in {"write", "write_beside", "post"}:
            return super()._call(call, *args, **kwargs)
        with self._counting:
            self._writes += 1
            loses = self._writes % self.every == 0
        done = super()._call(call, *args, **kwargs) if self.applied or not loses else None
        if not loses or (call == "post" and self.applied and done is None):
            return done  # of what cannot be posted nothing is lost
        return _Failing(done, self._lose) if call == "post" else self._lose()

    def _lose(self) -> NoReturn:
        with self._counting:
            self.lost += 1
        what = "reply" if self.applied else "request"
        raise AmbiguousWrite(self.name, f"the {what} was lost, on purpose")


class FailsAt(_Around):
    """A store of which one call fails: a StoreUnavailable before anything is done, or ``mode``.

    To fail at each point in turn, count up ``n`` until ``fired`` stays False:

    >>> from itertools import count
    >>> from celery_statekit.stores import MemoryStore
    >>> for n in count(1):
    ...     store = FailsAt(MemoryStore("failpoints"), n)
    ...     try:
    ...         record, changes = store.read("statekit:task:1"), store.history("statekit:task:1")
    ...     except StoreUnavailable:
    ...         pass  # look here: is what was there intact, and does a second try succeed?
    ...     if not store.fired:
    ...         break
    >>> n  # the points before it have failed, each once
    3

    Args:
        store: the real one; closed with this.
        n: which call, from 1; 0: none.
        until: the last of several calls that fail; 0: ``n`` alone.
        mode: how it fails. ``error``: StoreUnavailable, or, after a call that changes something,
            AmbiguousWrite. ``doubt``: AmbiguousWrite for what changes something, else
            StoreUnavailable. ``kill``: this process is killed by SIGKILL. ``stop``: all its
            threads are stopped (SIGSTOP) for ``seconds``. ``delay``: the call takes ``seconds``
            longer.
        after: whether it fails once the store has done what was asked, instead of before. What is
            posted fails when its answer is asked for.
        seconds: how long ``stop`` and ``delay`` last.
    """

    def __init__(
        self,
        store: Store,
        n: int,
        until: int = 0,
        *,
        mode: Mode = "error",
        after: bool = False,
        seconds: float = 0.1,
    ) -> None:
        super().__init__(store)
        self.n = n
        self.until = until or n
        self.mode = mode
        self.after = after
        self.seconds = seconds
        #: How many calls there were so far.
        self.calls = 0
        #: Whether one has failed.
        self.fired = False
        self._counting = threading.Lock()

    def _call(self, call: str, /, *args: Any, **kwargs: Any) -> Any:
        with self._counting:
            self.calls += 1
            number = self.calls
            fires = self.n <= number <= self.until
            self.fired |= fires
        fail = partial(self._fail, number, call)
        if fires and call == "post" and (self.after or self.mode in {"error", "doubt"}):
            posted = super()._call(call, *args, **kwargs) if self.after else None
            return None if self.after and posted is None else _Failing(posted, fail)
        if fires and not self.after:
            fail()
        returned = super()._call(call, *args, **kwargs)
        if fires and self.after:
            fail()
        return returned

    def _fail(self, number: int, call: str) -> None:
        if self.mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.mode == "stop":
            stop_self(self.seconds)
        elif self.mode == "delay":
            time.sleep(self.seconds)
        elif call in CHANGES and (self.after or self.mode == "doubt"):
            raise AmbiguousWrite(self.name, f"the reply to call {number} is lost, on purpose")
        else:
            raise StoreUnavailable(self.name, f"call {number} fails, on purpose")


def stop_self(seconds: float) -> None:
    """Stop all threads of this process for ``seconds``, as SIGSTOP does; another continues it."""
    # Again and again, for the first may come before the stop.
    program = f"sleep {seconds}; while kill -CONT {os.getpid()}; do sleep 0.05; done"
    with subprocess.Popen(["/bin/sh", "-c", program]) as other:  # noqa: S603 - words of ours
        os.kill(os.getpid(), signal.SIGSTOP)
        other.kill()

"""A flusher without threads: what waits a little in a worker is done at once in a test."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from celery_statekit import flusher as flushing
from celery_statekit.flusher import Flusher, Mirrors, Reports, flusher
from celery_statekit.testing.clock import FrozenClock

logger = logging.getLogger(__name__)


class InlineFlusher:
    """As the process's :class:`~celery_statekit.flusher.Flusher`, but it has no thread.

    Progress is written when it is due by the frozen clock, if there is one, and always with a
    move; that of runs in other threads is written by the flusher ``behind``.
    """

    def __init__(self, behind: Flusher) -> None:
        self._behind = behind
        self._thread = threading.get_ident()
        self._watched: dict[Reports, float] = {}

    @classmethod
    @contextmanager
    def in_place(cls) -> Iterator[InlineFlusher]:
        """Within the block it is the flusher of this process."""
        held, pid = flushing.flushers.made, os.getpid()
        behind = flusher()
        inline = cls(behind)
        held[pid] = cast("Flusher", inline)
        clock = FrozenClock.running()
        if clock is not None:
            clock.moved.append(inline.write_due)
        try:
            yield inline
        finally:
            held[pid] = behind
            if clock is not None:
                clock.moved.remove(inline.write_due)

    def write_due(self) -> None:
        """Write the progress that is due by the frozen clock."""
        now = _now()
        for reports, at in [*self._watched.items()]:
            if at <= now:
                self._flush(reports)

    @property
    def is_stuck(self) -> bool:
        """Whether a call that nobody waits for any more is not done yet."""
        return False

    def watch(self, reports: Reports) -> None:
        """From now on what ``reports`` says is written."""
        if threading.get_ident() == self._thread:
            self._watched[reports] = _now() + reports.interval
        else:
            self._behind.watch(reports)

    def hurry(self, reports: Reports) -> None:
        """Write what ``reports`` says now."""
        if reports in self._watched:
            self._flush(reports)
        else:
            self._behind.hurry(reports)

    def forget(self, reports: Reports) -> None:
        """Nothing of ``reports`` is written any more."""
        if self._watched.pop(reports, None) is None:
            self._behind.forget(reports)

    def call(
        self,
        function: Callable[[], object],
        patience: float,  # noqa: ARG002 - nobody waits
        *,
        insists: bool = False,  # noqa: ARG002 - the store is never away
    ) -> bool:
        """Call ``function``."""
        return _called(function)

    def insist(self, function: Callable[[], object]) -> bool:
        """Call ``function``."""
        return _called(function)

    def mirror(self, mirrors: Mirrors) -> None:
        """Show what ``mirrors`` says."""
        _called(mirrors.mirror)

    def aside(self, function: Callable[[], object]) -> bool:
        """Call ``function``."""
        return _called(function)

    def tell(self, function: Callable[[], object]) -> None:
        """Call ``function``, a hook or receiver."""
        _called(function)

    def end(self, patience: float = flushing.LAST_CHANCE) -> None:
        """The process ends."""
        self._behind.end(patience)

    def _flush(self, reports: Reports) -> None:
        self._watched[reports] = _now() + reports.interval
        told: list[Any] = []
        _called(lambda: told.append(reports.flush()))
        if told and callable(told[0]):
            self.tell(told[0])


def _now() -> float:
    clock = FrozenClock.running()
    return time.monotonic() if clock is None else clock.monotonic()


def _called(function: Callable[[], object]) -> bool:
    try:
        function()
    except Exception:
        # As in a worker: it must not fail the task.
        logger.exception("a call in the background failed")
    return True

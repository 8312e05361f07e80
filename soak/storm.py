"""Faults, one after the other, at random; and when they were, for what fails meanwhile may fail."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

#: Seconds from one fault to the next.
CALM: Final = (1.5, 2.5)
#: Seconds after a fault in which errors are still owed to it: what is under way has to end, and
#: each writer finds each of its connections broken once.
GRACE: Final = 1.0

Fault = Callable[[], object]


class Storm:
    """A thread that brings about ``faults`` by turns, in random order, until it is stopped.

    Args:
        faults: each does its harm, waits as long as it shall last, and ends it.
        seed: of the order.
        calm: at least and at most so many seconds lie between two.
    """

    def __init__(
        self, faults: Mapping[str, Fault], seed: int, calm: tuple[float, float] = CALM
    ) -> None:
        self._faults = dict(faults)
        self._chance = random.Random(seed)
        self._calm = calm
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        #: How often each fault was brought about.
        self.counts: Counter[str] = Counter()
        #: From when to when each lasted, with its aftermath, by ``time.monotonic()``.
        self.windows: list[tuple[float, float]] = []
        #: What went wrong with a fault itself.
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Bring about no further fault; returns when the last one is over.

        Raises:
            BaseException: what went wrong with a fault itself.
        """
        self._over.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while self._faults:
                for name in self._chance.sample(sorted(self._faults), len(self._faults)):
                    if self._over.wait(self._chance.uniform(*self._calm)):
                        return
                    began = time.monotonic()
                    self._faults[name]()
                    self.windows.append((began, time.monotonic() + GRACE))
                    self.counts[name] += 1
        except BaseException as exc:  # noqa: BLE001 - told by stop()
            self.error = exc

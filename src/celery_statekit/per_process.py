"""One object of a kind in each process: a thread and its locks do not come along in a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")


class PerProcess(Generic[Made]):
    """Makes the object of a process when it is first asked for; a forked child gets its own.

    Args:
        make: makes one.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        #: By the number of the process.
        self.made: dict[int, Made] = {}

    def get(self) -> Made:
        """The object of this process."""
        pid = os.getpid()
        found = self.made.get(pid)
        if found is None:
            # Another thread may be here too: one of the two is the process's.
            found = self.made.setdefault(pid, self._make())
            for other in [key for key in self.made if key != pid]:
                # The parent's thread does not live here, and its lock may be held for ever.
                self.made.pop(other, None)
        return found

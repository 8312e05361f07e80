"""Random numbers of our own: a user's seeded ``random`` changes none of them, nor they its."""

from __future__ import annotations

import os
import random
from typing import Final

#: Seeded anew in each process: the two of a fork would else wait, and name their writes, alike.
chance: Final = random.Random()  # noqa: S311 - it guards nothing
os.register_at_fork(after_in_child=chance.seed)

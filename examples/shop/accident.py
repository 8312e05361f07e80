"""The accident: a worker that imports this is killed once it has charged an order.

The charge is stored then. Its task has not ended, so its message is not acknowledged.
"""

from __future__ import annotations

import os
import signal

from celery_statekit.signals import ClientChanged, client_changed


@client_changed.connect
def pull_the_plug(changed: ClientChanged, **_: object) -> None:
    """Kill this worker with all its processes: ``kill -9``."""
    if changed.state == "CHARGED":
        os.killpg(0, signal.SIGKILL)

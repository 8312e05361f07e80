"""Tasks that kill the child they run in, and are to be sent again."""

from __future__ import annotations

import os
import signal

from celery import Celery

from celery_statekit import StatefulTask

app = Celery("killing_shop", set_as_current=False)
app.conf.update(statekit_lease=3.0, statekit_lost_grace=1.0)


@app.task(bind=True, base=StatefulTask, on_lost="requeue", name="shop.kills_once")
def kills_once(self: StatefulTask, a: int, *, b: int) -> list[int]:
    """Kills the first child only."""
    if self.task_state.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return [a, b]


@app.task(bind=True, base=StatefulTask, on_lost="requeue", max_attempts=2, name="shop.kills")
def kills(self: StatefulTask) -> None:
    """Kills whatever runs it."""
    os.kill(os.getpid(), signal.SIGKILL)

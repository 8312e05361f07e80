"""How the worker's main process sees a message of a stateful task: it knows of lost runs.

Loaded by a worker only, by its name (celery 5.7 worker/strategy.py:126).
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.worker.request import Request

from celery_statekit.backends.guard import is_sent_again
from celery_statekit.errors import StatekitError, brief
from celery_statekit.flusher import PATIENCE, flusher
from celery_statekit.record import TaskState
from celery_statekit.settings import Settings

logger = logging.getLogger(__name__)


class StatefulRequest(Request):  # type: ignore[misc]
    """As Celery's; a run that is known to be gone is LOST at once, not when its lease ends."""

    def on_failure(
        self,
        exc_info: Any,
        send_failed_event: bool = True,  # noqa: FBT001, FBT002 - Celery's signature
        return_ok: bool = False,  # noqa: FBT001, FBT002
    ) -> Any:
        """As Celery's, which says nothing of a run whose message comes again (:733)."""
        comes_again = self.task.acks_late and self.task.reject_on_worker_lost
        # Celery 5.7: the message is sent again.
        sent_again = getattr(self.task, "retry_on_worker_lost", False)
        exc = exc_info.exception
        exc = exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
        if isinstance(exc, WorkerLostError) and (
            comes_again or sent_again or is_sent_again(self.task)
        ):
            # Before the message is given back: who takes it finds the run lost, and need not wait.
            self._lose(str(exc), PATIENCE)
        return super().on_failure(
            exc_info, send_failed_event=send_failed_event, return_ok=return_ok
        )

    def cancel(self, pool: Any, *args: Any, **options: Any) -> Any:
        """As Celery's, of a worker that ends, or has lost its broker, and gives up its runs."""
        # Where the pool cannot end a run, this raises, and the run goes on.
        cancelled = super().cancel(pool, *args, **options)
        if self.time_start:
            # Not waited for: it is gevent's hub that calls this, which may not switch.
            self._lose(f"{self.hostname} has given up its runs", 0.0)
        return cancelled

    def _lose(self, reason: str, patience: float) -> None:
        if not getattr(self.task, "is_stateful", False):
            return
        owner = f"{self.hostname}:{self.worker_pid}"
        flusher().call(partial(self._write_lost, owner, reason), patience, insists=True)

    def _write_lost(self, owner: str, reason: str) -> None:
        def meant(state: TaskState) -> bool:
            return state.worker == owner

        try:
            Settings.of(self.task.app).tracker.lose(self.id, meant, reason=reason)
        except StatekitError:
            logger.debug("that %s is lost is not recorded", brief(self.id), exc_info=True)
            raise

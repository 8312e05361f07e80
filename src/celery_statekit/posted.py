"""PENDING that is sent to the store while its message is being published."""

from __future__ import annotations

from celery_statekit.errors import AmbiguousWrite
from celery_statekit.frozen import changed
from celery_statekit.settling import write_settled
from celery_statekit.stores.base import Posted, Posts
from celery_statekit.tracker import Tracker
from celery_statekit.written import NOBODY, Written


class PostedTask:
    """A PENDING that was sent to the store, while its message is being published."""

    @classmethod
    def of(
        cls,
        tracker: Tracker,
        id: str,
        task: str,
        *,
        client_id: str = "",
        due_at: float | None = None,
        expires_at: float | None = None,
    ) -> PostedTask | None:
        """As :meth:`Tracker.queue`; the store is not waited for.

        None where that cannot be done at once: then nothing was done.
        """
        store = tracker.store
        if tracker.breaker.is_open or not isinstance(store, Posts):
            return None
        nobody = changed(NOBODY, id=id)
        pending = tracker.queued(nobody, task, client_id, due_at)
        new = tracker.following(tracker.key(id), None, nobody, pending)
        ttl = tracker.kept_until(due_at, expires_at)
        posted = store.post(new.record, changes=new.changes, ttl=ttl, labels=new.labels)
        return None if posted is None else cls(tracker, new, posted, ttl)

    def __init__(
        self, tracker: Tracker, written: Written, posted: Posted, ttl: float | None
    ) -> None:
        self._tracker = tracker
        self._written = written
        self._posted = posted
        self._ttl = ttl
        self._doubt: AmbiguousWrite | None = None
        #: When it was sent, by this process's clock.
        self.at = written.state.updated_at
        #: What saves the run that is told of it a read.
        self.guess = written.guess

    def is_written(self, seconds: float) -> bool:
        """Whether the task is PENDING now; waits for the store at most ``seconds``, once.

        False: something was known of its id already.

        Raises:
            StoreError: it is not known whether it is; :meth:`settle` finds out.
        """
        try:
            written = self._posted.is_written(seconds)
        except AmbiguousWrite as exc:
            self._doubt = exc
            raise
        return self._told(written=written)

    def settle(self) -> bool:
        """As :meth:`is_written`, where that has raised; waits for as long as a write may take.

        The same record is sent again, so that it is known where the first one was taken.
        """
        return self._told(written=self._tracker.breaker.call(self._send_again))

    def _send_again(self) -> bool:
        new, store = self._written, self._tracker.store
        try:
            return write_settled(
                store,
                new.record,
                expect=None,
                changes=new.changes,
                ttl=self._ttl,
                labels=new.labels,
                doubt=self._doubt,
            )
        except AmbiguousWrite:
            # The store has answered where a run was quicker: the record is that run's.
            found = store.read(new.record.key)
            if found is None or found.incarnation == new.record.incarnation:
                raise
            return False

    def _told(self, *, written: bool) -> bool:
        if written and self._written.change is not None:
            self._tracker.tell(self._written.change)
        return written

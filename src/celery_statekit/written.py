"""What a write of a task's record leaves behind, and how a message says it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from celery_statekit.frozen import changed
from celery_statekit.record import FORMAT, Change, Record, TaskState, id_of
from celery_statekit.stores.base import Labels

#: Shape, incarnation, id of the write and time of a PENDING record, as a message says them.
_QUEUED: Final = re.compile(
    r"(\d{1,3}:[0-9a-f]{8}) ([0-9a-f]{8}) ([0-9a-f]{8}) (\d{1,10}\.\d{1,6})", re.ASCII
)

#: Shapes of the PENDING records that this release writes.
_queued_shapes: Final[dict[tuple[bool, bool], str]] = {}

#: Copied and filled: that is faster than to make one.
NOBODY: Final = TaskState(id="")
_QUEUED_RECORD: Final = Record(key="", version=1, incarnation="", document={})


class Written(NamedTuple):
    """What a commit left behind."""

    record: Record
    state: TaskState
    change: Change | None

    @property
    def changes(self) -> tuple[Change, ...]:
        """The change, if any, as stores take them."""
        return () if self.change is None else (self.change,)

    @property
    def labels(self) -> Labels:
        """What the record is found by."""
        return Labels(self.state.state, self.state.client_id)

    @property
    def guess(self) -> str:
        """The PENDING record as a message says it; "" where it is none."""
        record, at = self.record, self.state.queued_at
        if self.change is None or at is None or record.version > 1:
            return ""
        return f"{shape_of(record.document)} {record.incarnation} {record.writes[-1]} {at!r}"

    def is_lost(self, found: Record | None) -> bool:
        """Whether ``found``, read later, is from before this: the store went back.

        Nobody deletes the record of a live run, and the numbers of a task's runs only grow.
        """
        if found is None or found.follows(self.record) is False:
            return True
        if found.incarnation == self.record.incarnation:
            return False
        state = TaskState.from_record(found)
        return not state.final and state.attempt <= self.state.attempt


def as_queued(state: TaskState, key: str, queued: object) -> Written | None:
    """PENDING of ``state`` as its message says it; None where that cannot be read."""
    found = isinstance(queued, str) and _QUEUED.fullmatch(queued)
    if not found:
        return None
    shape, incarnation, write, at = found.groups()
    pending = changed(
        state,
        state="PENDING",
        worker="",
        version=1,
        queued_at=float(at),
        updated_at=float(at),
        changes=1,
        source="record",
    )
    # What decides which fields it has.
    kind = (state.client_id != "", id_of(key) == state.id)
    if kind not in _queued_shapes:
        _queued_shapes[kind] = shape_of(pending.to_document(key))
    if shape != _queued_shapes[kind]:
        return None  # another release has written it, or more is known of it
    record = changed(_QUEUED_RECORD, key=key, incarnation=incarnation, writes=(write,))
    return Written(record, pending, None)


def shape_of(document: Mapping[str, Any]) -> str:
    """The format of a record, and a checksum of what fields it has."""
    return f"{FORMAT}:{zlib.crc32(' '.join(sorted(document)).encode()):08x}"

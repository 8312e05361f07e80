"""Stores and callers that are wrong in one way each, and the rule that each breaks."""

from __future__ import annotations

from collections.abc import Iterator

from celery_statekit.testing import Kept

from .simulated import Caller, Entry, Run, Shelf


class NoCompare(Shelf):
    """Writes whatever is there by now."""

    def write(self, key: str, base: Entry, new: Entry) -> bool:
        self.entries[key].append(new)
        return True


class BlindWrite(Shelf):
    """Counts the version itself, over whatever is there by now."""

    def write(self, key: str, base: Entry, new: Entry) -> bool:
        self.told = self.entries[key][-1].version + 1
        self.entries[key].append(new._replace(version=self.told))
        return True

    def version(self, new: Entry) -> int:
        return self.told


class NothingToCompare(Shelf):
    """Compares nothing where there was nothing: of two who create, both succeed."""

    def write(self, key: str, base: Entry, new: Entry) -> bool:
        if base.version == 0:
            self.entries[key].append(new)
            return True
        return super().write(key, base, new)


class HiddenRetry(Shelf):
    """Its client sends a request again whose reply was lost, and it is done again."""

    def write(self, key: str, base: Entry, new: Entry) -> bool:
        written = super().write(key, base, new)
        if written and self.chance.random() < 0.05:
            super().write(key, new, new._replace(version=new.version + 1))
        return written


class LateArrival(Shelf):
    """A request that was given up comes in later."""

    def write(self, key: str, base: Entry, new: Entry) -> bool:
        if super().write(key, base, new):
            return True
        if self.chance.random() < 0.5:
            last = self.entries[key][-1]
            self.entries[key].append(new._replace(version=last.version + 1))
        return False


class Replica(Shelf):
    """Some reads come from a copy that lags."""

    def read(self, key: str) -> Entry:
        entries = self.entries[key]
        lags = len(entries) > 2 and self.chance.random() < 0.05
        return entries[-2] if lags else entries[-1]


class WriteBehind(Shelf):
    """Acknowledges before it has written, and then dies."""

    def kept(self) -> dict[str, Kept]:
        return {
            key: Kept(whole.version - 1, whole.applied[:-1])
            for key, whole in super().kept().items()
        }


class Failover(Shelf):
    """Goes back to what a copy has, and on from there."""

    def write(self, key: str, base: Entry, new: Entry) -> bool:
        if len(self.entries[key]) > 3 and self.chance.random() < 0.02:
            del self.entries[key][-1]
        return super().write(key, base, new)


class Evicts(Shelf):
    """Drops a key when it has no room."""

    def kept(self) -> dict[str, Kept]:
        kept = super().kept()
        del kept["client:0"]
        return kept


class ForgetsHistory(Shelf):
    """Keeps the newest changes only, and says that these are all; readers are told no names."""

    def read(self, key: str) -> Entry:
        return super().read(key)._replace(writer=None)

    def kept(self) -> dict[str, Kept]:
        # A change that is gone is one of an update that its caller gave up.
        return {
            key: Kept(whole.version, whole.applied[-2:]) for key, whole in super().kept().items()
        }


class LastWriterWins(Shelf):
    """Puts one name in the place of another in what it keeps; readers are told no names."""

    def read(self, key: str) -> Entry:
        return super().read(key)._replace(writer=None)

    def kept(self) -> dict[str, Kept]:
        return {
            key: Kept(whole.version, [*whole.applied[:-2], whole.applied[-1], whole.applied[-1]])
            if whole.version > 1
            else whole
            for key, whole in super().kept().items()
        }


class Skips(BlindWrite):
    """Counts two versions for one write, now and then."""

    def write(self, key: str, base: Entry, new: Entry) -> bool:
        if self.entries[key][-1].version != base.version:
            return False
        self.told = new.version + (self.chance.random() < 0.05)
        self.entries[key].append(new._replace(version=self.told))
        return True


class Tears(Shelf):
    """Puts a record together from two versions."""

    def read(self, key: str) -> Entry:
        entries = self.entries[key]
        if len(entries) < 3 or self.chance.random() > 0.5:
            return entries[-1]
        return entries[-1]._replace(state=entries[-2].state)


class Foreign(Shelf):
    """Somebody else writes under our names, too."""

    def read(self, key: str) -> Entry:
        entry = super().read(key)
        if self.chance.random() < 0.01:
            self.entries[key].append(Entry(entry.version + 1, "somebody", entry.fence, entry.state))
        return super().read(key)


class DirtyRead(Shelf):
    """Shows what it then takes back."""

    def read(self, key: str) -> Entry:
        entry = super().read(key)
        if self.chance.random() < 0.02 and entry.writer is not None:
            return entry._replace(version=entry.version + 1, writer=f"{entry.writer} again")
        return entry


class NoFence(Caller):
    """An attempt that was taken over goes on."""

    def may_write(self, key: str, base: Entry) -> bool:
        return base.state != "DONE"


class FenceOnce(Caller):
    """Looks at its fence when it begins and never again: numbers of its writes begin anew."""

    def fence(self, key: str, base: Entry) -> tuple[int, int]:
        return (self.attempts[key], 1 if self.chance.random() < 0.2 else base.fence[1] + 1)


class LeavesEnds(Caller):
    """Writes though the task has ended."""

    def may_write(self, key: str, base: Entry) -> bool:
        return base.fence[0] <= self.attempts[key]


class LostIsFailed(Caller):
    """Takes a lost reply for a refusal."""

    def outcome(self, key: str, id: str, written: bool, lost: bool) -> str:
        return "failed" if lost else super().outcome(key, id, written, lost)


class LostIsOk(Caller):
    """Takes a lost reply for success."""

    def outcome(self, key: str, id: str, written: bool, lost: bool) -> str:
        return "ok" if lost else super().outcome(key, id, written, lost)


class LostIsAgain(Caller):
    """Applies an update anew whose reply was lost, and does not look for it."""

    def outcome(self, key: str, id: str, written: bool, lost: bool) -> str:
        return "again" if lost else super().outcome(key, id, written, lost)


class Forgets(Caller):
    """Acknowledges what it never sent."""

    def outcome(self, key: str, id: str, written: bool, lost: bool) -> str:
        if not written and self.chance.random() < 0.3:
            return "ok"
        return super().outcome(key, id, written, lost)


class Caches(Caller):
    """Reads from what it has read before, now and then."""

    def __init__(self, name: str, run: Run) -> None:
        super().__init__(name, run)
        self.cached: dict[str, Entry] = {}

    def read(self, key: str) -> Entry:
        if key not in self.cached or self.chance.random() > 0.1:
            self.cached[key] = super().read(key)
        return self.cached[key]


class AllFail(Caller):
    """Gets nothing done."""

    def outcome(self, key: str, id: str, written: bool, lost: bool) -> str:
        return "ambiguous"

    def reading(self, key: str, id: str) -> Iterator[None]:
        return self.updating(key, id)


BUGS: tuple[tuple[type[Shelf | Caller], str], ...] = (
    (NoCompare, "unique"),
    (BlindWrite, "base"),
    (NothingToCompare, "unique"),
    (HiddenRetry, "doubled"),
    (LateArrival, "doubled"),
    (Replica, "order"),
    (WriteBehind, "lost"),
    (Failover, "unique"),
    (Failover, "order"),
    (Evicts, "lost"),
    (ForgetsHistory, "gap"),
    (LastWriterWins, "doubled"),
    (LastWriterWins, "lost"),
    (Skips, "base"),
    (Tears, "torn"),
    (Foreign, "unknown"),
    (DirtyRead, "unknown"),
    (NoFence, "fence"),
    (FenceOnce, "fence"),
    (LeavesEnds, "end"),
    (LostIsFailed, "failed"),
    (LostIsOk, "lost"),
    (LostIsAgain, "doubled"),
    (Forgets, "unique"),
    (Caches, "order"),
    (AllFail, "few"),
)

"""Whether what many writers and readers were told of a store can all be true.

Each committed write of a key carries its own version, so that no search for an order is needed:
the versions are the order, and a million operations are checked in seconds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

from celery_statekit.errors import InvalidInput

#: What a violation breaks; :func:`check_history` says what each asks for.
Rule: TypeAlias = Literal[
    "unique", "base", "lost", "doubled", "failed", "unknown", "gap", "order", "torn", "fence",
    "end", "few",
]  # fmt: skip
#: Violations that the message of an error shows.
SHOWN: Final = 10


class Operation(NamedTuple):
    """What one caller asked for and was told. Each read and each update has an id of its own."""

    id: str
    key: str
    kind: Literal["read", "update"]
    #: When it was called and when it returned, by a clock that all callers share, such as
    #: ``time.monotonic()`` on one machine; ``math.inf`` where it never returned.
    invoked: float
    completed: float
    #: ``ok``: acknowledged. ``failed``: surely nothing was changed. ``ambiguous``: nobody knows.
    outcome: Literal["ok", "failed", "ambiguous"]
    #: The version it found, 0 where there was nothing; None where it found out nothing.
    base: int | None = None
    #: Which operation had written that version, as the record told.
    writer: str | None = None
    #: The version it was told to have written; of an acknowledged update.
    version: int | None = None
    #: Number of the attempt, and of the write within the attempt.
    fence: tuple[int, int] | None = None
    #: The state that an update gave, or that a read found; "" where there are none.
    state: str = ""


class Kept(NamedTuple):
    """What a store holds of one key at the end."""

    #: 0: nothing.
    version: int
    #: Ids of the operations that wrote the latest versions, the newest last; all, or some.
    applied: Sequence[str] = ()
    #: The first version that an operation must account for; those before are older.
    first: int = 1


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that no correct store, and no correct caller of it, can bring about."""

    rule: Rule
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.key}: {self.what}" if self.key else f"{self.rule}: {self.what}"


@dataclass(slots=True)
class HistoryReport:
    """What was checked, and what was found."""

    operations: int = 0
    acknowledged: int = 0
    failed: int = 0
    ambiguous: int = 0
    #: Of the ambiguous ones: how many were applied.
    settled: int = 0
    keys: int = 0
    violations: list[Violation] = field(default_factory=list)

    @property
    def rules(self) -> Counter[Rule]:
        """How many violations there are of each rule that is broken."""
        return Counter(violation.rule for violation in self.violations)


class BrokenHistory(AssertionError):
    """Raised when a history breaks a rule; ``report`` names each violation."""

    def __init__(self, report: HistoryReport) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        found = self.report.violations
        lines = [f"{len(found)} violations in {self.report.operations} operations:"]
        lines += map(str, found[:SHOWN])
        return "\n  ".join([*lines, "..."] if len(found) > SHOWN else lines)


def check_history(
    operations: Iterable[Operation],
    kept: Mapping[str, Kept],
    *,
    ends: Collection[str] = (),
    at_least: float = 0.5,
) -> HistoryReport:
    """Check that what callers were told fits what the store holds, and each other.

    >>> made = Operation("a", "k", "update", 0.0, 1.0, "ok", base=0, version=1)
    >>> raised = Operation("b", "k", "update", 2.0, 3.0, "ok", base=1, writer="a", version=2)
    >>> check_history([made, raised], {"k": Kept(2, ["a", "b"])}).acknowledged
    2
    >>> stale = Operation("c", "k", "read", 4.0, 5.0, "ok", base=1, writer="a")
    >>> check_history([made, raised, stale], {"k": Kept(2, ["a", "b"])})
    Traceback (most recent call last):
        ...
    celery_statekit.testing.checker.BrokenHistory: 1 violations in 3 operations:
      order: k: c, begun after version 2 was known, found version 1

    The rules, by which violations are named:

    - ``unique``: no version of a key was written twice;
    - ``base``: an update writes the version after the one that it found;
    - ``lost``: what was acknowledged, or seen, is in the final history;
    - ``doubled``: nothing is there twice, acknowledged or ambiguous;
    - ``failed``: nothing is there that failed;
    - ``unknown``: nothing is there that nobody asked for;
    - ``gap``: of every version it is known who wrote it;
    - ``order``: what begins after another has ended finds what that one found or wrote, or newer;
      nothing is found before it was asked for;
    - ``torn``: a version has the state that was written with it, whoever reads it;
    - ``fence``: from version to version the fence never decreases;
    - ``end``: no state follows one of ``ends``;
    - ``few``: at least the share ``at_least`` of the operations was acknowledged, and there are
      any, so that a run of errors is not taken for a correct one.

    A version is any number that each committed update of the key raises by one. A key that is
    deleted and begun anew counts as two keys.

    Args:
        operations: in any order.
        kept: what the store holds at the end, by key; a key that is missing holds nothing.
        ends: states that are never left.
        at_least: share of the operations, from 0 to 1.

    Raises:
        BrokenHistory: at least one rule is broken.
        InvalidInput: two operations have one id, or an acknowledged one has no version.
    """
    report = HistoryReport()
    by_key: dict[str, dict[str, Operation]] = defaultdict(dict)
    outcomes: Counter[str] = Counter()
    for operation in operations:
        outcomes[operation.outcome] += 1
        of_key = by_key[operation.key]
        if operation.id in of_key:
            raise InvalidInput("an id of two operations", "operations", operation.id, "unique ids")
        of_key[operation.id] = operation
    report.operations = outcomes.total()
    report.acknowledged, report.failed = outcomes["ok"], outcomes["failed"]
    report.ambiguous = outcomes["ambiguous"]
    report.keys = len(by_key)
    for key in sorted({*by_key, *kept}):
        _Key(key, by_key.get(key, {}), kept.get(key, Kept(0)), report).check(ends)
    share = report.acknowledged / report.operations if report.operations else 0.0
    if share < at_least:
        why = f"{share:.1%} of {report.operations} operations succeeded, not {at_least:.1%}"
        report.violations.append(Violation("few", "", why))
    if report.violations:
        raise BrokenHistory(report)
    return report


class _Key:
    """The operations on one key, by id, and what they tell of its versions."""

    def __init__(
        self, key: str, operations: dict[str, Operation], kept: Kept, report: HistoryReport
    ) -> None:
        self.key = key
        self.operations = operations
        self.kept = kept
        self.report = report
        #: Who wrote each version, as far as anybody knows.
        self.writers: dict[int, str] = {}
        #: The version that each operation wrote.
        self.places: dict[str, int] = {}

    def found(self, rule: Rule, what: str) -> None:
        self.report.violations.append(Violation(rule, self.key, what))

    def check(self, ends: Collection[str]) -> None:
        self._see()
        self._claim()
        self._check_places()
        self._check_final()
        self._check_order()
        self._check_sequence(ends)

    def _see(self) -> None:
        """Learn who wrote each version, as those who read it were told."""
        newest = self.kept.version
        told = [
            (operation.base, operation.writer)
            for operation in self.operations.values()
            if operation.base and operation.writer is not None
        ]
        begin = newest - len(self.kept.applied) + 1
        for version, id in (*told, *enumerate(self.kept.applied, begin)):
            if (other := self.writers.setdefault(version, id)) != id:
                self.found("unique", f"version {version} was once by {other}, once by {id}")

    def _claim(self) -> None:
        """Learn it from those who wrote them, as they were told themselves."""
        claimed: dict[int, str] = {}
        for operation in self.operations.values():
            if operation.kind == "read" or operation.outcome != "ok":
                continue
            version, base, id = operation.version, operation.base, operation.id
            if version is None:
                raise InvalidInput("acknowledged without a version", id, version, "a whole number")
            if base is not None and version != base + 1:
                self.found("base", f"{id} found version {base} and wrote version {version}")
            if (other := claimed.setdefault(version, id)) != id:
                self.found("unique", f"{other} and {id} were both told to be version {version}")
            if (other := self.writers.get(version, id)) != id:
                self.found("lost", f"{id} was told to be version {version}, which is by {other}")
        self.writers = {**claimed, **self.writers}

    def _check_places(self) -> None:
        for version, id in sorted(self.writers.items()):
            if version < self.kept.first:
                continue
            operation = self.operations.get(id)
            if (other := self.places.setdefault(id, version)) != version:
                self.found("doubled", f"{id} is version {other} and version {version}")
            elif operation is None or operation.kind == "read":
                self.found("unknown", f"version {version} is by {id}, which is no update")
            elif operation.outcome == "failed":
                self.found("failed", f"version {version} is by {id}, which failed")
            elif operation.outcome == "ambiguous":
                self.report.settled += 1

    def _check_final(self) -> None:
        newest = self.kept.version
        known = max(self.writers, default=0)
        if known > newest:
            last = self.writers[known]
            self.found("lost", f"it ends at version {newest}, but {last} was version {known}")
        missing = [v for v in range(self.kept.first, newest + 1) if v not in self.writers]
        if missing:
            self.found("gap", f"nobody wrote version {missing[0]}; {len(missing)} are missing")

    def _check_order(self) -> None:
        operations = self.operations.values()
        ended = sorted(operations, key=_completed)
        known, at = 0, 0
        for operation in sorted(operations, key=_invoked):
            while at < len(ended) and ended[at].completed < operation.invoked:
                known = max(known, ended[at].base or 0, ended[at].version or 0)
                at += 1
            base, version = operation.base, self.places.get(operation.id, operation.version)
            if base is not None and base < known:
                self._found_late(operation, known, f"found version {base}")
            elif version is not None and version <= known:
                self._found_late(operation, known, f"wrote version {version}")
            writer = self.operations.get(self.writers.get(base or 0, ""))
            if writer is not None and operation.completed < writer.invoked:
                self.found("order", f"{operation.id} found version {base} before {writer.id} began")

    def _found_late(self, operation: Operation, known: int, did: str) -> None:
        self.found("order", f"{operation.id}, begun after version {known} was known, {did}")

    def _check_sequence(self, ends: Collection[str]) -> None:
        fence, state = (0, 0), ""
        states: dict[int, str] = {}
        for version in sorted(self.writers):
            operation = self.operations.get(self.writers[version])
            if operation is None:
                continue
            if operation.fence is not None:
                if operation.fence < fence:
                    self.found(
                        "fence", f"version {version} has fence {operation.fence}, after {fence}"
                    )
                fence = operation.fence
            if state in ends and operation.state != state:
                self.found("end", f"version {version} is {operation.state}, after {state}")
            state = states[version] = operation.state
        for operation in self.operations.values():
            if operation.kind == "read" and operation.state and operation.base:
                written = states.get(operation.base, "") or operation.state
                if written != operation.state:
                    self.found(
                        "torn",
                        f"{operation.id} found version {operation.base} as {operation.state}, "
                        f"which was written as {written}",
                    )


def _invoked(operation: Operation) -> float:
    return operation.invoked


def _completed(operation: Operation) -> float:
    return operation.completed

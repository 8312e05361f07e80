"""The reporter that a run has as ``self.progress``, and ``track()``.

The task's thread only sets attributes; another thread takes snapshots and carries them away. So
reporting never waits for a store, a slow item does not hold back what came before it, and what
stands when the run ends is what the last snapshot gets.

``track()`` costs a C call per item and no Python code: ``map`` asks a tuple iterator for a tick,
then the source for an item, and hands on the item. How many ticks were taken can be read from any
thread, and whoever takes away those that are left makes the loop come back to Python at its next
item, before the source is asked for it.
"""

from __future__ import annotations

import logging
import math
import operator
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from types import GeneratorType, MappingProxyType
from typing import Any, Final, SupportsFloat, TypeAlias, TypeVar, cast

from celery_statekit.checkpoint import check_new
from celery_statekit.errors import Cancelled, InvalidInput, InvalidProgress
from celery_statekit.frozen import changed
from celery_statekit.progress import (
    NOTHING,
    Progress,
    checked_mapping,
    checked_number,
    checked_text,
    share_done,
)

_T = TypeVar("_T")
#: When (seconds), and what was done then.
_Sample: TypeAlias = tuple[float, float]

logger = logging.getLogger(__name__)

#: Seconds of recent progress that the rate is taken from.
RATE_WINDOW: Final = 10.0
#: Least seconds between two samples of the rate: bounds how many are kept.
_SAMPLE_GAP: Final = RATE_WINDOW / 64
#: One chunk of ticks. Python code runs once per chunk.
_TICKS: Final = ("",) * 1024
#: Over this an ``int`` takes the way of all other numbers: it may have no float.
_SMALL: Final = 2**53
_KEPT: Final[Any] = object()
_NONE: Final[Mapping[str, int]] = MappingProxyType({})


class Reporter:
    """What a running task has as ``self.progress``; made for one run.

    ``snapshot``, ``stop``, ``halt``, ``go_on`` and the attributes may be used from any thread, all
    else from the task's alone. What reports raises what ``stop`` was given, and
    ``InvalidProgress`` for what means nothing; then nothing has changed.

    Args:
        clock: seconds, monotonic; rate and ETA follow from it.
    """

    __slots__ = (
        "__weakref__",
        "_halted",
        "_highest",
        "_monotonic",
        "_named",
        "_phase",
        "_plan",
        "_planned",
        "_running",
        "_samples",
        "_sources",
        "_stood",
        "_stopped",
        "_switch",
    )

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = clock
        #: How long its clock stood still, and since when it does.
        self._stood: tuple[float, float | None] = (0.0, None)
        self._phase = _Phase(shown=NOTHING, origin=(clock(), 0))
        #: Names and weights of the steps, in order.
        self._plan: tuple[tuple[str, float], ...] = ()
        self._planned = False
        self._running: list[_Track] = []
        #: Tracks whose place is kept, and under which name.
        self._named: tuple[tuple[str, _Place], ...] = ()
        #: Generators that somebody still holds.
        self._sources: weakref.WeakSet[Generator[Any, Any, Any]] = weakref.WeakSet()
        self._stopped: BaseException | None = None
        #: What the task's thread calls before it reports anything.
        self._halted: Callable[[], None] | None = None
        self._switch = threading.Lock()
        #: The series that the samples belong to, and the samples.
        self._samples = (self._phase.origin, [self._phase.origin])
        self._highest = 0.0

    @property
    def current(self) -> float:
        """Items done; the one in the body of a running ``track`` is not."""
        return self._phase.done()

    @property
    def total(self) -> float | None:
        """Items to do; None: unknown."""
        return self._phase.shown.total

    @property
    def message(self) -> str:
        """What is being done, in words."""
        return self._phase.shown.message

    @property
    def details(self) -> Mapping[str, Any]:
        """The task's own facts, as last set; a copy."""
        return dict(self._phase.shown.details)

    @property
    def untouched(self) -> bool:
        """Whether nothing was reported yet."""
        phase = self._phase
        return phase.shown is NOTHING and not phase.count and phase.track is None

    @property
    def finished(self) -> Mapping[str, int]:
        """How many items each track with a name has finished, and skipped. From any thread."""
        if not self._named:
            return _NONE
        return {name: place.done for name, place in self._named}

    def update(self, n: SupportsFloat = 1) -> None:
        """Add ``n`` items to what is done."""
        if type(n) is int and 0 <= n <= _SMALL and self._halted is None:
            self._phase.count += n
            return
        self._heed()
        amount = checked_number(n, "n")
        checked_number(self._phase.done() + amount, "current")
        self._phase.count += amount

    def set(
        self,
        current: SupportsFloat | None = None,
        total: SupportsFloat | None = _KEPT,
        message: str | None = None,
        details: Mapping[str, Any] | None = None,
        **facts: Any,
    ) -> None:
        """Set what is given, at once; the rest stays.

        Args:
            current: items done; it may fall. A running ``track`` counts on from there.
            total: items to do; None: unknown.
            message: what is being done, in words.
            details: the task's own facts in place of the ones before; JSON.
            facts: own facts beside the ones before.
        """
        self._heed()
        phase = self._phase
        given: dict[str, Any] = {}
        if total is not _KEPT:
            given["total"] = total
        if message is not None:
            given["message"] = message
        if details is not None or facts:
            kept = phase.shown.details if details is None else checked_mapping(details, "details")
            given["details"] = {**kept, **facts}
        count = phase.count
        if current is not None:
            count = checked_number(current, "current") - phase.items()
        if given:
            shown = replace(phase.shown, **given)
            fixed = phase.fixed if total is _KEPT else total is not None
            # One assignment: a snapshot sees all of it or nothing.
            self._phase = replace(phase, shown=shown, count=count, fixed=fixed)
        else:
            phase.count = count

    def steps(self, *steps: str | Mapping[str, SupportsFloat]) -> None:
        """Declare the steps to come, in order, before the first begins.

        Args:
            steps: their names, which weigh the same, or one mapping of names to weights: how
                long each takes, compared with the others.
        """
        self._heed()
        phase = self._phase
        if phase.shown.step:
            raise InvalidProgress("too late for a plan", "steps", steps, "before the first step")
        first = steps[0] if len(steps) == 1 else None
        declared = first.items() if isinstance(first, Mapping) else [(name, 1) for name in steps]
        plan = tuple(
            (_name(name), _weight(weight, f"steps[{name!r}]")) for name, weight in declared
        )
        if not plan or len(dict(plan)) < len(plan):
            raise InvalidProgress("not a plan", "steps", steps, "names, each once")
        _weight(sum(weight for _, weight in plan), "steps")
        shown = replace(phase.shown, step_count=len(plan))
        self._plan, self._planned, self._highest = plan, True, 0.0
        self._phase = replace(phase, shown=shown, share=0.0)

    def step(
        self,
        name: str,
        weight: SupportsFloat | None = None,
        total: SupportsFloat | None = None,
        message: str = "",
    ) -> None:
        """Begin a step: ``current`` is 0 again, and what was running before counts no more.

        A declared step that is passed over counts as done. A name that was not declared comes
        right after the running step; how many steps there are is known only if some were
        declared.

        Args:
            name: a step that has not begun yet.
            weight: how long it takes, compared with the others; None: as declared, else 1.
            total: items to do in this step; tracks in it count towards it. None: their own.
            message: what is being done, in words.
        """
        self._heed()
        phase, plan = self._phase, dict(self._plan)
        name, names, running = _name(name), list(plan), phase.shown.step_number
        place = names.index(name) if name in plan else running
        if place < running:
            later = ", ".join(map(repr, names[running:])) or "a new name"
            raise InvalidProgress("a step that has begun already", "name", name, later)
        entry = name, _weight(plan.get(name, 1) if weight is None else weight, "weight")
        ahead, behind = self._plan[:place], self._plan[place + (name in plan) :]
        weights = [weight for _, weight in (*ahead, entry, *behind)]
        whole = _weight(sum(weights), "weight")
        shown = Progress(
            total=cast("float | None", total),
            message=message,
            details=phase.shown.details,
            step=name,
            step_number=place + 1,
            step_count=len(weights) if self._planned else None,
        )
        self._plan = (*ahead, entry, *behind)
        self._phase = _Phase(
            shown=shown,
            origin=(self._clock(), 0),
            fixed=total is not None,
            before=sum(weights[:place]) / whole,
            share=entry[1] / whole if self._planned else None,
        )

    def track(
        self,
        iterable: Iterable[_T],
        message: str = "",
        total: SupportsFloat | None = None,
        *,
        name: str | None = None,
        skip: int = 0,
    ) -> Iterator[_T]:
        """Iterate over ``iterable`` and count its items.

        An item is done when the next is asked for, or the source ends or fails: one whose loop
        body breaks or raises is not. Each track begins at 0 with its own total, at its first
        item; in a step it counts on from what the step has done, towards the step's total if
        that was given. While tracks are nested the innermost shows. ``update`` in the body of
        the loop adds to the count.

        A loop is left when nobody holds its iterator any more; until then, or the run's end,
        tracks begun after it count as nested. A generator is closed when its loop is left and
        nobody else holds it, when the run is stopped, and at the run's end.

        Args:
            iterable: what to iterate over.
            message: what is being done, in words; "": the message before stays.
            total: how many items there are; None: its length, or the length it hints at.
            name: under which ``finished`` says how many items are done; None: it does not.
            skip: how many items were done before; they are passed over, and counted.

        Raises:
            InvalidProgress: ``message`` or ``total`` means nothing.
            InvalidInput: ``iterable`` can only be iterated over with ``async for``; or another
                track has the name.
            TypeError: ``iterable`` is not iterable.
        """
        if hasattr(iterable, "__aiter__") and not hasattr(iterable, "__iter__"):
            rule = "an iterable; in async code call update() for each item"
            raise InvalidInput("an asynchronous iterable", "iterable", iterable, rule)
        known = _length(iterable) if total is None else checked_number(total, "total")
        message = checked_text(message, "message")
        source = iter(iterable)
        track = _Track(source, message, known, skip)
        place = None
        if name is not None:
            check_new(name, [taken for taken, _ in self._named])
            place = _Place(skip)
            self._named = (*self._named, (name, place))
        if isinstance(source, GeneratorType):
            self._sources.add(source)
        # {}.get(tick, item) is item, at the least cost of all calls in C that give their second.
        second = cast("Callable[[str, _T], _T]", {}.get)
        # map asks its iterators in this order: a tick, then an item.
        ticks = self._ticks(track)
        items = source if place is None else _Placed(source, place, skip)
        return map(second, chain.from_iterable(ticks), chain(items, _closing(ticks)))

    def snapshot(self) -> Progress:
        """How far it is now. From any thread.

        ``rate`` is taken over the last ten seconds of snapshots, further back where nothing
        moved since, and from the start of the running track or step where that is shorter.
        ``fraction`` never falls once steps are declared.
        """
        phase, now = self._phase, self._clock()
        done, total = phase.done(), phase.shown.total
        rate = self._rate(phase.origin, now, done)
        fraction = phase.fraction()
        eta = None
        if total and rate:
            part = share_done(done, total)
            if fraction is None:
                eta = (1 - part) * total / rate
            elif phase.share and phase.outer is None:
                # The weights tell how long the other steps take, beside this one.
                eta = (1 - fraction) * total / rate / phase.share
        if fraction is not None:
            self._highest = fraction = max(self._highest, fraction)
        return changed(
            phase.shown, current=done, rate=_finite(rate), eta=_finite(eta), fraction=fraction
        )

    def stop(self, exc: BaseException) -> None:
        """Raise ``exc`` in the task's thread, at its next call or the next item. From any thread.

        It is raised again at every later call. The first exception given stays.

        Raises:
            TypeError: ``exc`` is no exception.
        """
        if not isinstance(exc, BaseException):
            raise TypeError(f"{exc!r} is no exception")
        with self._switch:
            if self._stopped is None:
                self._stopped, self._halted = exc, self._raise_stopped
        self._interrupt()

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called. From any thread."""
        return self._stopped is not None

    def halt(self, call: Callable[[], None]) -> None:
        """Have the task's thread make ``call`` at its next call or the next item. From any thread.

        It is made again at every later one until ``go_on`` is called. It may wait, and raise.
        """
        with self._switch:
            if self._stopped is None:
                self._halted = call
        self._interrupt()

    def go_on(self) -> None:
        """Take back what ``halt`` was given. From any thread."""
        with self._switch:
            if self._stopped is None:
                self._halted = None

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Within the block no time passes for rate and ETA."""
        before, since = self._stood[0], self._monotonic()
        self._stood = before, since
        try:
            yield
        finally:
            self._stood = before + self._monotonic() - since, None

    def close(self) -> None:
        """Make the count final and close the generators that tracks have left open.

        For the run's end, in the task's thread. What a generator raises then is logged.
        """
        for track in reversed(tuple(self._running)):
            self._finish(track, track.done())
        for source in tuple(self._sources):
            self._close(source)

    def _interrupt(self) -> None:
        # A track that begins now is not in the list, or looks at _halted after it was put there.
        for track in tuple(self._running):
            track.interrupt()

    def _heed(self) -> None:
        halted = self._halted
        if halted is not None:
            halted()

    def _raise_stopped(self) -> None:
        if self._stopped is not None:
            # Without the last traceback: it would grow, and keep every frame it went through.
            raise self._stopped.with_traceback(None)

    def _clock(self) -> float:
        stood, since = self._stood
        return (self._monotonic() if since is None else since) - stood

    def _begin(self, track: _Track) -> None:
        phase = self._phase
        count: float = track.skipped
        total = track.total
        if phase.shown.step and phase.over:
            before = phase.done()
            count += before
            total = None if total is None else before + total
            total = phase.shown.total if phase.fixed else total
        message = track.message or phase.shown.message
        shown = replace(phase.shown, total=total, message=message)
        self._running.append(track)
        self._phase = replace(
            phase,
            shown=shown,
            count=count,
            track=track,
            outer=None if phase.over else phase,
            origin=(self._clock(), count),
        )

    def _ticks(self, track: _Track) -> Generator[Iterable[str], None, None]:
        self._heed()
        self._begin(track)
        try:
            while True:
                chunk = track.next_chunk()
                if self._halted is not None:
                    self._heed_between(track)
                yield chunk
        finally:
            # Here also when the loop was left and nobody holds the iterator any more.
            self._finish(track, track.done())

    def _heed_between(self, track: _Track) -> None:
        try:
            self._heed()
        except BaseException:
            # An item was asked for and no tick was taken yet: all that came are done.
            self._finish(track, track.taken())
            self._close(None if track.source is None else track.source())
            raise

    def _finish(self, track: _Track, done: int) -> None:
        if track.final is not None:
            return
        track.final = done
        self._running.remove(track)
        now = phase = self._phase
        # Loops end from within; one that was left may be held longer than those around it.
        while phase.over and phase.outer is not None:
            phase = phase.outer
        shown = replace(phase.shown, details=now.shown.details)
        if phase.over:
            self._phase = replace(phase, shown=shown, count=phase.done(), track=None)
        else:
            self._phase = replace(phase, shown=shown)

    def _close(self, source: Generator[Any, Any, Any] | None) -> None:
        try:
            if source is not None:
                source.close()
        except Exception as exc:
            if exc is not self._stopped and not isinstance(exc, Cancelled):
                logger.warning("a tracked generator failed to close", exc_info=True)

    def _rate(self, origin: _Sample, now: float, done: float) -> float | None:
        series, kept = self._samples
        # A list of its own: snapshots may be taken by several threads.
        samples = [*kept] if series is origin else [origin]
        if done < samples[-1][1]:
            samples = [(now, done)]
        elif done > samples[-1][1] and now - samples[-1][0] >= _SAMPLE_GAP:
            samples.append((now, done))
        while len(samples) > 1 and samples[0][0] < now - RATE_WINDOW and samples[1][1] < done:
            del samples[0]
        self._samples = origin, samples
        since, before = samples[0]
        return (done - before) / (now - since) if now > since else None


@dataclass(slots=True, kw_only=True)
class _Phase:
    """What counts together: a step, a track, or what is between them.

    Only ``count`` changes; anything else is a new phase, so that a reader has all of one.
    """

    shown: Progress
    #: When it began and what was done then.
    origin: _Sample
    #: What is done beside the items of ``track``.
    count: float = 0
    track: _Track | None = None
    #: The phase that goes on when ``track`` ends.
    outer: _Phase | None = None
    #: Whether the total was given for the step, and not by a track.
    fixed: bool = False
    #: The part of all steps that comes before this one, and this one's; None: no plan.
    before: float = 0.0
    share: float | None = None

    @property
    def over(self) -> bool:
        return self.track is None or self.track.final is not None

    def items(self) -> int:
        return 0 if self.track is None else self.track.done()

    def done(self) -> float:
        return self.count + self.items()

    def fraction(self) -> float | None:
        if self.share is None:
            return None
        step = self
        while step.outer is not None:
            step = step.outer
        total = step.shown.total
        part = 0.0 if total is None else share_done(step.done(), total)
        return min(self.before + self.share * part, 1.0)


class _Track:
    """Where one running ``track()`` is. The loop alone holds the source and the iterator."""

    __slots__ = ("_chunk", "final", "message", "skipped", "source", "total")

    def __init__(
        self, source: Iterator[Any], message: str, total: float | None, skipped: int
    ) -> None:
        #: The source if it is a generator.
        self.source = weakref.ref(source) if isinstance(source, GeneratorType) else None
        self.message = message
        self.total = total
        #: Items that were done before; they are not counted among those done.
        self.skipped = skipped
        #: Items done, once it has ended.
        self.final: int | None = None
        #: Ticks taken before this chunk, the chunk, and what ``interrupt`` took away of it.
        self._chunk: tuple[int, Iterator[str], list[str]] = (-len(_TICKS), iter(()), [])

    def next_chunk(self) -> Iterator[str]:
        chunk = iter(_TICKS)
        self._chunk = (self.taken(), chunk, [])
        return chunk

    def interrupt(self) -> None:
        """Make the loop ask for the next chunk before its next item. From any thread."""
        _, chunk, unused = self._chunk
        # One call in C: no tick is taken by both, and all stay countable.
        unused.extend(chunk)

    def taken(self) -> int:
        before, chunk, unused = self._chunk
        while True:
            gone = len(unused)
            taken = before + len(_TICKS) - operator.length_hint(chunk) - gone
            if gone == len(unused):
                return taken

    def done(self) -> int:
        # Asking for an item says that the one before it is done.
        return max(self.taken() - 1, 0) if self.final is None else self.final


class _Place:
    """How many items of a source are done, those of earlier attempts included."""

    __slots__ = ("done", "given")

    def __init__(self, done: int) -> None:
        self.done = self.given = done


class _Placed(Iterator[_T]):
    """The items of a source behind those that were done before.

    A source may raise and go on, which takes a tick and gives no item: here only items count.
    """

    __slots__ = ("_place", "_source", "_to_skip")

    def __init__(self, source: Iterator[_T], place: _Place, skip: int) -> None:
        self._source = source
        self._place = place
        self._to_skip = skip

    def __next__(self) -> _T:
        place = self._place
        place.done = place.given
        while self._to_skip:
            next(self._source)
            self._to_skip -= 1
        item = next(self._source)
        place.given += 1
        return item


def track(
    reporter: Reporter,
    iterable: Iterable[_T],
    message: str = "",
    total: SupportsFloat | None = None,
) -> Iterator[_T]:
    """Iterate over ``iterable`` while ``reporter`` counts; see :meth:`Reporter.track`."""
    return reporter.track(iterable, message, total)


def _closing(ticks: Generator[Any, None, None]) -> Iterator[Any]:
    # Not left to its finalizer, where Python drops what a signal raises: a soft time limit.
    ticks.close()
    yield from ()


def _length(iterable: object) -> int | None:
    try:
        length = operator.length_hint(iterable, -1)
    except OverflowError:  # range(10**30)
        return None
    return None if length < 0 else length


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidProgress("not a name", "name", value, "a non-empty str")
    return checked_text(value, "name")


def _weight(value: object, path: str) -> float:
    weight = checked_number(value, path)
    if not weight:
        raise InvalidProgress("not a weight", path, value, "a finite number > 0")
    return weight

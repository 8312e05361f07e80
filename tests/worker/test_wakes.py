"""What wakes the thread that writes progress: a run that is long enough, and no short one."""

from __future__ import annotations

import math
import threading

import pytest

from celery_statekit.breaker import FIRST_PAUSE
from celery_statekit.errors import StoreUnavailable
from celery_statekit.flusher import Flusher
from celery_statekit.testing import ManualClock

INTERVAL = 1.0


class Run:
    """A run that has something to say; whether it was written, and when."""

    interval = INTERVAL

    def __init__(self, clock):
        self._clock = clock
        self.written = []

    def flush(self):
        self.written.append(self._clock())


class Alarm(threading.Condition):
    """What the thread sleeps on, by a clock of the test's; counts how often it wakes."""

    def __init__(self, clock):
        super().__init__()
        self._clock = clock
        self.wakes = 0
        #: How often anybody was to be woken, and what of that the sleeper has slept in upon.
        self._rung = self._heard = 0
        self._sleeps = False
        #: When who sleeps wakes by itself; infinity: never.
        self.wakes_at = math.inf

    def notify_all(self):
        self._rung += 1
        super().notify_all()

    def wait(self, timeout=None):
        self._sleeps, self._heard = True, self._rung
        self.wakes_at = math.inf if timeout is None else self._clock() + timeout
        while self._heard == self._rung and self._clock() < self.wakes_at:
            super().wait(0.002)
        self._sleeps = False
        self.wakes += 1

    @property
    def is_settled(self):
        """Whether the thread sleeps, and has heard of everything."""
        with self:
            asleep = self._sleeps and self._heard == self._rung
            return asleep and self._clock() < self.wakes_at


@pytest.fixture
def clock():
    """The clock of flusher and condition."""
    return ManualClock(100.0)


@pytest.fixture
def alarm(clock):
    """What the flusher's thread sleeps on."""
    return Alarm(clock)


@pytest.fixture
def background(clock, alarm):
    """A flusher of the test's own; its thread, a daemon, sleeps for ever afterwards."""
    background = Flusher(clock)
    background._wake = alarm
    return background


@pytest.fixture
def asleep(alarm, until):
    """Wait until the thread sleeps; until when that is."""

    def wait():
        until(lambda: alarm.is_settled)
        return alarm.wakes_at

    return wait


@pytest.fixture
def pass_by(background, clock, alarm, asleep):
    """Let short runs come and go, one after the other, in so many seconds.

    Each ``seen``-th is there when the thread looks, 0: none; the others have gone by then.
    """

    def come_and_go(runs, seconds, seen=2):
        for number in range(runs):
            run = Run(clock)
            with alarm:  # whatever it is told it hears when this is over
                background.watch(run)
                if not seen or number % seen:
                    background.forget(run)
            asleep()
            clock.advance(seconds / runs)
            asleep()
            background.forget(run)
            assert run.written == []

    return come_and_go


@pytest.mark.parametrize("seen", [0, 1, 3])
def test_short_runs_wake_it_once_an_interval(pass_by, alarm, seen):
    """However many there are, and whether it has seen them or not."""
    pass_by(2, 0.001)
    for intervals in range(1, 5):
        pass_by(100, INTERVAL, seen)
        assert alarm.wakes <= 2 * intervals + 2


def test_a_long_run_after_many_short_ones(background, clock, alarm, asleep, pass_by, until):
    """Is written when its interval is over, and each interval from then on."""
    pass_by(100, INTERVAL * 0.7)
    long, began = Run(clock), clock()
    background.watch(long)
    assert asleep() <= began + INTERVAL
    for number in range(1, 4):
        # Not before: what it woke for has gone.
        due = began + number * INTERVAL
        clock.advance(due - clock() - 0.01)
        assert asleep() == pytest.approx(due)
        assert len(long.written) == number - 1
        clock.advance(0.01)
        until(lambda number=number: len(long.written) == number)
        asleep()
    background.forget(long)


def test_a_long_run_among_short_ones(background, clock, pass_by, until):
    """They come and go while it goes on, and make it neither late nor early."""
    long, began = Run(clock), clock()
    background.watch(long)
    pass_by(99, INTERVAL * 0.99)
    assert long.written == []
    clock.advance(INTERVAL * 0.01 + 1e-6)
    until(lambda: long.written)
    assert long.written == [pytest.approx(began + INTERVAL)]
    background.forget(long)


def test_a_run_with_a_shorter_interval_wakes_it_sooner(background, clock, asleep, until):
    """It is written when its own interval is over."""
    slow, quick = Run(clock), Run(clock)
    quick.interval = INTERVAL / 10
    background.watch(slow)
    asleep()
    background.watch(quick)
    assert asleep() == pytest.approx(clock() + quick.interval)
    clock.advance(quick.interval)
    until(lambda: quick.written)
    assert slow.written == []
    background.forget(quick)
    background.forget(slow)


def test_a_run_in_a_hurry_is_written_at_once(background, clock, pass_by, until):
    """Though the thread sleeps on for a run that has gone."""
    pass_by(2, 0.001)
    run = Run(clock)
    background.watch(run)
    background.hurry(run)
    until(lambda: run.written)
    background.forget(run)


def test_a_call_is_made_at_once(background, pass_by):
    """Though the thread sleeps on for a run that has gone."""
    pass_by(2, 0.001)
    called = []
    assert background.call(lambda: called.append("now"), 10.0)
    assert called == ["now"]


def test_what_the_store_has_not_taken_is_tried_soon(background, clock, asleep, pass_by, until):
    """Sooner than what it sleeps for, and later again where that is in vain."""
    called, slow = [], Run(clock)
    background.watch(slow)
    asleep()

    def write():
        called.append(clock())
        if len(called) == 1:
            raise StoreUnavailable("memory://", "on purpose", 0.125)

    began = clock()
    background.insist(write)
    assert asleep() == pytest.approx(began + FIRST_PAUSE)
    clock.advance(FIRST_PAUSE)
    until(lambda: len(called) == 1)
    assert asleep() == pytest.approx(began + FIRST_PAUSE + 0.125)
    clock.advance(0.125)
    until(lambda: len(called) == 2)
    assert asleep() == pytest.approx(began + INTERVAL)
    background.forget(slow)

"""Runs a task as a worker does, in the test's own thread, without a broker or a server."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, cast

from celery import Signature, _state
from celery.app.trace import build_tracer
from celery.worker.request import Request
from kombu.serialization import prepare_accept_content

from celery_statekit import signals
from celery_statekit.attempt import Attempt
from celery_statekit.checkpoint import checked_value
from celery_statekit.client import ClientState
from celery_statekit.clients import Clients
from celery_statekit.errors import InvalidInput, brief
from celery_statekit.record import Change, Limits, Record, TaskState
from celery_statekit.settings import Settings, unwrapped
from celery_statekit.stores.base import UNLABELLED, Labels
from celery_statekit.stores.memory import MemoryStore
from celery_statekit.task import StatefulTask
from celery_statekit.testing.inline import InlineFlusher
from celery_statekit.testing.redirect import as_in_a_worker, redirected
from celery_statekit.testing.results import MemoryResults
from celery_statekit.testing.run import Sent, StatefulRun, checkpoints_of, progresses_of
from celery_statekit.testing.transport import Wire
from celery_statekit.tracker import Tracker

#: The worker that is said to run the task.
HOSTNAME: Final = "celery@test"
#: What a message has beside its headers, by AMQP 0-9-1; a broker drops the rest.
_PROPERTIES: Final = frozenset({
    "app_id", "cluster_id", "content_encoding", "content_type", "correlation_id", "delivery_mode",
    "expiration", "message_id", "priority", "reply_to", "timestamp", "type", "user_id",
})  # fmt: skip


class _RecordingStore(MemoryStore):
    """A store of one run that remembers every write, and is looked into after the run."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(None, limits)
        self.name = "the store of a test"
        self.written: list[Record] = []

    def write(
        self,
        record: Record,
        *,
        expect: Record | None,
        changes: Sequence[Change] = (),
        ttl: float | None = None,
        labels: Labels = UNLABELLED,
    ) -> bool:
        """As any, and remember it."""
        written = super().write(record, expect=expect, changes=changes, ttl=ttl, labels=labels)
        if written:
            self.written.append(record)
        return written

    def close(self) -> None:
        """It goes when nobody holds it any more."""


class StatefulRunner:
    """What the fixture ``stateful_run`` is: call it with a task to run that once.

    The task runs as in a worker, through Celery's own tracer: arguments and result are sent as
    JSON, states are checked, guards are asked, clients hydrated, hooks and signals called. Nothing
    leaves the test: what the task sends is in ``run.sent``, its clients are in the memory of the
    run, and ``countdown`` of a retry is not waited for. Time limits are not watched.
    """

    def __call__(
        self,
        task: Any,
        *args: Any,
        kwargs: Mapping[str, Any] | None = None,
        attempt: int = 1,
        redelivered: bool = False,
        last_checkpoint: Any = None,
        finished: int | Mapping[str, int] = 0,
        client: ClientState | str | None = None,
        clients: Iterable[ClientState] = (),
        **options: Any,
    ) -> StatefulRun:
        """Run ``task`` once, and tell what it did; what it raises is ``run.error``.

        Args:
            task: a stateful task, or a signature of one: ``import_orders.s("orders.csv")``.
            args: its arguments.
            kwargs: its keyword arguments.
            attempt: number of the run; those before it have left for a retry.
            redelivered: those before it have died, and the message came again.
            last_checkpoint: what the run before this one left; None: nothing.
            finished: how many items its ``track(..., resume=True)`` had finished; or how many, by
                the name of the track.
            client: whose task it is: the id, or the client itself, which is stored.
            clients: others that are stored.
            options: those of ``apply_async``: ``headers``, ``link``, ``task_id``.

        Raises:
            InvalidInput: one of these cannot be; nothing was run.
            TypeError: the arguments do not fit the task, or nobody takes one of the options.
            EncodeError: the arguments cannot be sent.
        """
        signature = task if isinstance(task, Signature) else None
        stateful = _stateful(task if signature is None else signature.type)
        named = finished if isinstance(finished, Mapping) else {"": finished}
        _check_count("attempt", attempt, 1)
        for items in named.values():
            _check_count("finished", items, 0)
        stored = _stored(client, clients)
        given = tuple(options)
        if client is not None:
            options["client_id"] = getattr(client, "client_id", client)
        options.setdefault("task_id", str(uuid.uuid4()))
        if not redelivered:
            options["retries"] = attempt - 1
        with ExitStack() as stack:
            run = _Run(stack, stateful, options["task_id"])
            for each in stored:
                run.keep(each)
            run.begin_before(attempt, last_checkpoint, named, redelivered=redelivered)
            send = stateful.apply_async if signature is None else signature.apply_async
            send(args, dict(kwargs or {}), **options)
            run.check_taken({name: options[name] for name in given}, kwargs or {})
            return run.carry_out(redelivered=redelivered)


def _check_count(path: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInput("no count", path, value, f"an int of {least} or more")


def _stored(client: object, clients: object) -> list[ClientState]:
    """The clients that are in the store before the run."""
    if client is not None and not isinstance(client, (ClientState, str)):
        rule = "one ClientState or its id; others go in clients=[...]"
        raise InvalidInput("no client", "client", client, rule)
    others: list[Any] = [*clients] if isinstance(clients, Iterable) else [None]
    if not all(isinstance(each, ClientState) for each in others):
        rule = "a list of ClientState; the one whose task it is goes in client="
        raise InvalidInput("no clients", "clients", clients, rule)
    return [*([client] if isinstance(client, ClientState) else []), *others]


def _as_raised(error: BaseException) -> BaseException:
    """``error``, whose traceback begins in the task's own code, if it came there."""
    at = error.__traceback__
    while at is not None and _is_ours(at.tb_frame.f_globals.get("__name__")):
        at = at.tb_next
    return error if at is None else error.with_traceback(at)


def _has_options_of_its_own(task: type[StatefulTask]) -> bool:
    """Whether a class of it sees what is given to ``apply_async``, and may leave it there."""
    return any(
        "apply_async" in vars(each) and not _is_ours(each.__module__) for each in task.__mro__
    )


def _is_ours(module: object) -> bool:
    return str(module).partition(".")[0] in {"celery", "celery_statekit"}


def _stateful(task: Any) -> StatefulTask:
    if not getattr(task, "is_stateful", False):
        raise InvalidInput("no stateful task", "task", task, "a task, or a signature of one")
    # Not the proxy that a shared task is.
    return cast("StatefulTask", unwrapped(task.app).tasks[task.name])


class _Run:
    """One run while it is prepared, carried out and looked at."""

    def __init__(self, stack: ExitStack, task: StatefulTask, id: str) -> None:
        self.task = task
        self.id = id
        self.app = unwrapped(task.app)
        self.wire = Wire()
        self.settings: Settings = stack.enter_context(
            redirected(
                self.app,
                connect=self.wire.connect,
                make_backend=MemoryResults,
                make_store=_RecordingStore,
            )
        )
        self.store = cast("_RecordingStore", self.settings.store)
        self.prefix = self.settings.values.prefix
        stack.enter_context(as_in_a_worker(self.app, HOSTNAME))
        stack.enter_context(InlineFlusher.in_place())
        #: How many changes there were before the run.
        self.before = 0
        self.refused: list[Any] = []
        signals.transition_refused.connect(self._note, sender=task.name, weak=False)
        stack.callback(signals.transition_refused.disconnect, self._note, sender=task.name)

    def _note(self, refused: signals.Refused, **_: Any) -> None:
        if refused.id == self.id:
            self.refused.append(refused.error)

    def keep(self, client: ClientState) -> None:
        """Store ``client`` as it is."""
        key = Clients(self.store, type(client), prefix=self.prefix).key(client.client_id)
        record = Record.first(key, {"client": client.to_dict(), "changes": 0})
        if not self.store.write(record, expect=None, labels=Labels(client.state, client.client_id)):
            raise InvalidInput("a client given twice", "clients", client, "each client once")

    def begin_before(
        self, attempt: int, left: Any, finished: Mapping[str, int], *, redelivered: bool
    ) -> None:
        """Let the runs before ``attempt`` have been, without a sign of them but in the record."""
        value = checked_value(left, self.store.limits.record_bytes)
        if attempt == 1:
            if left is not None or any(finished.values()):
                rule = "attempt=2 or more: there is none before the first"
                raise InvalidInput("nothing is left by no run", "attempt", attempt, rule)
            return
        tracker = Tracker(self.store, prefix=self.prefix, silent=True)
        flow = self.task._flow  # noqa: SLF001 - what the task itself is checked by
        tracker.queue(self.id, self.task.name)
        for number in range(1, attempt):
            before = Attempt.of(tracker, self.id, self.task.name, flow, worker="celery@before:1")
            before.claim()
            if number == attempt - 1:
                for name, items in finished.items():
                    before.reporter.track((), name=name, skip=items)
                before.report()
                if left is not None:
                    before.checkpoint(value)
            if not redelivered:
                before.leave("RETRY", reason="an earlier attempt")
        self.before = tracker.read(self.id).changes

    def check_taken(self, options: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
        """Every option was one: what nobody takes is left among the message's properties.

        Raises:
            TypeError: one was none.
        """
        message = self._message()
        left = [name for name in options if name in message.properties and name not in _PROPERTIES]
        if _has_options_of_its_own(type(self.task)):
            left = [name for name in left if name in inspect.signature(self.task.run).parameters]
        if left:
            meant = {**kwargs, **{name: options[name] for name in left}}
            raise TypeError(
                f"no option of apply_async(): {', '.join(left)}; "
                f"keyword arguments of {self.task.name} go in kwargs={brief(meant)}"
            )

    def carry_out(self, *, redelivered: bool) -> StatefulRun:
        """Take the message that was sent, and run it."""
        message = self._message()
        message.delivery_info["redelivered"] = redelivered
        request = Request(message, app=self.app, hostname=HOSTNAME, task=self.task)
        context = {**request.request_dict, "loglevel": None, "logfile": None, "is_eager": False}
        context |= message.payload[2] or {}
        _state._set_task_join_will_block(True)  # noqa: SLF001 - as a worker's pool does
        trace = build_tracer(self.task.name, self.task, hostname=HOSTNAME, app=self.app)
        returned, left, _, _ = trace(self.id, request.args, request.kwargs, context)
        written = [
            TaskState.from_record(record)
            for record in self.store.written
            if record.key == self.settings.tracker.key(self.id)
        ]
        state = written[-1]
        return StatefulRun(
            task=self.task.name,
            id=self.id,
            attempt=state.attempt,
            changes=self._changes(),
            task_state=state,
            progresses=progresses_of(written, state.attempt),
            checkpoints=checkpoints_of(written, state.attempt),
            refused=tuple(self.refused),
            sent=tuple(self._sent(int(context["retries"]) + 1)),
            error=_as_raised(left.retval) if left else None,
            _flow=self.task._flow,  # noqa: SLF001 - what the task itself is checked by
            _store=self.store,
            _prefix=self.prefix,
            _returned=self._returned(returned),
        )

    def _message(self) -> Any:
        """The one that was sent to have it run."""
        for sent in self._messages():
            if sent.headers["id"] == self.id:
                return sent
        rule = "one that its apply_async() sends, by Celery's protocol 2"
        raise InvalidInput("a task that was not sent", "task", self.task.name, rule)

    def _messages(self) -> list[Any]:
        return self.wire.messages(prepare_accept_content(self.app.conf.accept_content))

    def _changes(self) -> tuple[Change, ...]:
        key, limit = self.settings.tracker.key(self.id), self.store.limits.history_changes
        return tuple(self.store.history(key, self.before, limit))

    def _returned(self, returned: Any) -> Any:
        """What was returned, as who asks the result backend gets it."""
        result = self.task.AsyncResult(self.id)
        return result.result if result.state == "SUCCESS" else returned

    def _sent(self, retry: int) -> Iterator[Sent]:
        for message in self._messages():
            headers, (args, kwargs, _) = message.headers, message.payload
            same = headers["id"] == self.id and headers["task"] == self.task.name
            if same and headers["retries"] in (retry - 1, retry):
                continue  # what was run, and its own retry
            yield Sent(
                task=headers["task"],
                id=headers["id"],
                args=tuple(args),
                kwargs=kwargs,
                routing_key=message.delivery_info["routing_key"],
                headers=headers,
            )

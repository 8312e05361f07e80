"""``celery -A proj statekit ...``: what an operator asks of states, from a shell.

Celery imports this module for every command of its own, workers included (entry point group
``celery.commands``), so what a command needs is imported where it runs. Each command is one
function below :func:`statekit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options


def _finite(_: click.Context, __: click.Parameter, seconds: float) -> float:
    if not math.isfinite(seconds):  # nan is neither below nor above a limit
        raise click.BadParameter(f"{seconds} is no number of seconds")
    return seconds


@click.group()
@click.pass_context
@handle_preload_options  # here for all commands below: celery 5.6 knows its options at this level
def statekit(ctx: click.Context, **_: Any) -> None:
    """States of tasks and clients, and of what keeps them."""


@statekit.command(cls=CeleryCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    callback=_finite,
    default=10.0,
    show_default=True,
    help="Seconds that one check may take.",
)
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, timeout: float) -> None:  # noqa: FBT001 - click's way
    """Say what is wrong with the app's settings and store, and what to change.

    Exits with 1 if something must be changed.
    """
    from celery_statekit.doctor import examine, lines, report  # noqa: PLC0415 - only where it runs

    app = ctx.obj.app
    findings = examine(app, timeout=timeout, named=ctx.find_root().params.get("app") is not None)
    click.echo(report(app, findings) if as_json else "\n".join(lines(findings)))
    ctx.exit(int(any(finding.must_change for finding in findings)))


@statekit.command(cls=CeleryCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def sweep(ctx: click.Context, as_json: bool) -> None:  # noqa: FBT001 - click's way
    """See that no task says that it runs while nobody runs it. Workers do so by themselves."""
    import json  # noqa: PLC0415 - only where it runs

    from celery_statekit.errors import StatekitError  # noqa: PLC0415
    from celery_statekit.sweep import sweep as look  # noqa: PLC0415

    try:
        swept = look(ctx.obj.app)
    except StatekitError as exc:
        click.echo(f"Error: {exc}", err=True)
        ctx.exit(3)
    became = {"lost": swept.lost, "requeued": swept.requeued, "failed": swept.failed}
    if as_json:
        click.echo(json.dumps(became))
        return
    for what, ids in became.items():
        for id in ids:
            click.echo(f"{id}: {what}")


# --- what is asked of tasks ----------------------------------------------------------------------

_ids: Callable[[Any], Any] = click.argument("ids", nargs=-1, required=True, metavar="ID...")
_reason: Callable[[Any], Any] = click.option("--reason", default="", help="Why, in words.")
_by: Callable[[Any], Any] = click.option(
    "--by", default=None, help="Who asks.  [default: the user of the operating system]"
)
_json: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object."
)


def _steer(ctx: click.Context, what: str, by: str | None, as_json: bool, **asked: Any) -> None:  # noqa: FBT001 - click's way
    from celery_statekit import steering  # noqa: PLC0415 - only where it runs
    from celery_statekit.errors import InvalidInput, StatekitError  # noqa: PLC0415

    by = steering.operator() if by is None else by
    try:
        told = getattr(steering, what)(ctx.obj.app, by=by, **asked)
    except InvalidInput as exc:
        raise click.UsageError(str(exc)) from exc
    except StatekitError as exc:
        click.echo(f"Error: {exc}", err=True)
        ctx.exit(3)
    click.echo(steering.report(told) if as_json else "\n".join(steering.lines(told)))
    ctx.exit(max(each.code for each in told))


@statekit.command(cls=CeleryCommand)
@_ids
@_reason
@_by
@click.option("--hard", is_flag=True, help="Also kill its process, where the pool can do that.")
@_json
@click.pass_context
def cancel(ctx: click.Context, /, **asked: Any) -> None:
    """Ask tasks to end, as REVOKED: at their next state call, or at once if they are not running.

    Exits with 0 if all were asked, with 1 if one had ended or was cancelled before, with 2 if
    nobody knows one.
    """
    _steer(ctx, "cancel", **asked)


@statekit.command(cls=CeleryCommand)
@_ids
@_reason
@_by
@_json
@click.pass_context
def pause(ctx: click.Context, /, **asked: Any) -> None:
    """Ask tasks to wait, at their next state call or before they begin, until they are resumed.

    Exits with 0 if all were asked, with 1 if one had ended or was paused before, with 2 if nobody
    knows one.
    """
    _steer(ctx, "pause", **asked)


@statekit.command(cls=CeleryCommand)
@_ids
@_by
@_json
@click.pass_context
def resume(ctx: click.Context, /, **asked: Any) -> None:
    """Let tasks go on that were paused.

    Exits with 0 if all do, with 1 if one had ended or was not paused, with 2 if nobody knows one.
    """
    _steer(ctx, "resume", **asked)

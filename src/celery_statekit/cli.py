"""``celery -A proj statekit ...``: what an operator asks of states, from a shell.

Celery imports this module for every command of its own, workers included (entry point group
``celery.commands``), so what a command needs is imported where it runs. Each command is one
function below :func:`statekit`.
"""

from __future__ import annotations

import math
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

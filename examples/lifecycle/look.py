"""Another process, which gets nothing but ids: a line for each that it reads."""

from __future__ import annotations

import sys
from typing import Any

from celery_statekit import StatefulResult
from examples.lifecycle.app import app


def look(id: str) -> str:
    """What the record says of the task, and what Celery's own result says."""
    result: StatefulResult[Any] = StatefulResult(id, app=app)
    state = result.task_state
    what = result.result if state.state == "SUCCESS" else state.reason
    return f"{id}  record: {state.state:14}  r.status: {result.status:14}  {what or ''}"


if __name__ == "__main__":
    for line in sys.stdin:
        print(look(line.strip()), flush=True)

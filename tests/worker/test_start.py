"""A worker whose settings cannot be obeyed does not start, and says why."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

APP = """
from celery import Celery
from celery_statekit import StatefulTask

app = Celery("shop", broker="{broker}", backend="cache+memory://")
app.conf.update({settings})

@app.task(base=StatefulTask)
def load():
    pass
"""


@pytest.mark.parametrize(
    ("broker", "settings", "said"),
    [
        ("memory://", "statekit_stroe='memory://'", "did you mean statekit_store?"),
        ("memory://", "statekit_store='redis://:hunter2@localhost/shop'", "statekit_store"),
        ("amqp://guest:hunter2@localhost", "", "no store follows from"),
    ],
)
def test_worker_with_settings_that_cannot_be_obeyed(tmp_path, broker, settings, said):
    """It ends at once, with one sentence and without a password."""
    (tmp_path / "shop.py").write_text(APP.format(broker=broker, settings=settings))
    ended = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "shop", "worker", "-P", "solo", "-l", "CRITICAL"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode != 0
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("celery_statekit:"))
    assert said in line
    assert "hunter2" not in ended.stdout + ended.stderr

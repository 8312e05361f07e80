"""Another sender, whose records live for a second: ``python -m examples.lifecycle.forgetful``."""

from __future__ import annotations

import time

from examples.lifecycle.app import add, app

app.conf.result_expires = 1  # seconds


def main() -> None:
    """Send a task, purge it, and wait until nobody knows it any more."""
    result = add.delay(1, 1)
    app.control.purge()  # what `celery purge` calls
    while result.task_state.known:
        time.sleep(0.1)
    print(f"  {result.id}  record: {result.task_state.state}")


if __name__ == "__main__":
    main()

"""The app as a worker has it; what stands in the lines of the three names, pytest-celery replaces.

It is never imported by the tests, only copied to where a worker runs.
"""

from __future__ import annotations

from celery import Celery

from celery_statekit import listeners, setup

imports = None

app = Celery("celery_test_app")
config = None

listeners.PATIENCE = 45.0  # however busy the machine is, a step of a canvas is PENDING at first
app.config_from_object(config)
setup(app)
add_tasks(app)  # noqa: F821 - it is imported in place of imports

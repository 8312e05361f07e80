"""``base=`` that drops the app's own task class: in Django and Flask projects, and plain ones."""

import json

import pytest
from celery import Task

import celery_statekit
from celery_statekit import StatefulTask
from celery_statekit.doctor import Level

DJANGO = """
    import os

    import django
    from django.conf import settings

    settings.configure(
        CELERY_BROKER_URL="sqla+sqlite:///broker.db",
        CELERY_RESULT_BACKEND="file:///tmp",
        CELERY_STATEKIT_HISTORY=50,
        INSTALLED_APPS=[],
    )
    os.environ["DJANGO_SETTINGS_MODULE"] = "proj"
    django.setup()

    from celery import Celery
    from celery_statekit import StatefulTask, setup

    app = Celery("proj")
    app.config_from_object("django.conf:settings", namespace="CELERY")
"""

FLASK = """
    from celery import Celery, Task
    from flask import Flask
    from celery_statekit import StatefulTask, setup

    flask = Flask("proj")

    class FlaskTask(Task):
        def __call__(self, *args, **kwargs):
            with flask.app_context():
                return self.run(*args, **kwargs)

    app = Celery("proj", task_cls=FlaskTask)
    app.config_from_object(dict(broker_url="sqla+sqlite:///broker.db", result_backend="file:///tmp"))
"""

BASE = """
    @app.task(base=StatefulTask)
    def add(x, y):
        return x + y
"""
SETUP = """
    setup(app)

    @app.task
    def add(x, y):
        return x + y
"""


@pytest.mark.parametrize(
    ("project", "name"), [(DJANGO, "DjangoTask"), (FLASK, "FlaskTask")], ids=["django", "flask"]
)
def test_projects_of_frameworks(doctor, project, name):
    """``base=StatefulTask`` drops what the framework's class does; ``setup(app)`` keeps it."""
    pytest.importorskip(name.removesuffix("Task").lower())

    dropped = doctor(project + BASE, "--json")
    kept = doctor(project + SETUP, "--json")

    (fault,) = (each for each in json.loads(dropped.stdout)["findings"] if each["level"] != "ok")
    assert dropped.returncode == 1
    assert (fault["name"], fault["level"]) == ("base", "must change")
    assert f"drops the app's task class {name} in proj.add" in fault["found"]
    assert f"class Base(StatefulTask, {name})" in fault["change"]
    assert kept.returncode == 0, kept.stdout
    assert f"every stateful task is a {name}" in kept.stdout


class ContextTask(Task):
    """What a framework adds to all tasks of an app."""


class Both(StatefulTask, ContextTask):
    """What the doctor proposes."""


def add(x, y):
    """A task's function."""
    return x + y


def test_a_class_that_is_put_on_the_app(make, the):
    """The older recipe sets ``app.Task``; that counts as well."""
    app = make()
    app.Task = ContextTask
    app.task(base=StatefulTask, name="shop.add")(add)

    assert the(app, "base").level is Level.MUST


def test_what_is_proposed_helps(make, the):
    """A base of both classes drops nothing, and neither does ``@stateful(app)``."""
    app = make(task_cls=ContextTask)
    app.task(base=Both, name="shop.add")(add)
    celery_statekit.stateful(app, name="shop.sum")(add)

    assert the(app, "base").level is Level.OK


def test_beside_setup_one_task_may_drop_it(make, the):
    """After ``setup`` an explicit ``base=`` drops it all the same."""
    app = celery_statekit.setup(make(task_cls=ContextTask))
    app.task(name="shop.kept")(add)
    app.task(base=StatefulTask, name="shop.dropped")(add)

    found = the(app, "base").found

    assert "in shop.dropped" in found
    assert "shop.kept" not in found


def test_plain_tasks_are_not_ours(make, the):
    """A task that is not stateful may have any base."""
    app = make(task_cls=ContextTask)
    app.task(base=Task, name="shop.plain")(add)

    assert the(app, "base").level is Level.OK


def test_an_app_without_a_class_of_its_own(make, the):
    """Celery's own class does nothing that could be dropped."""
    app = make()
    app.task(base=StatefulTask, name="shop.add")(add)

    assert the(app, "base").level is Level.OK

"""Settings of a Django project whose Celery app has all the neighbours at once."""

from __future__ import annotations

import os

from .place import ENVIRONMENT, Place

PLACE = Place.from_json(os.environ[ENVIRONMENT])

SECRET_KEY = "of a test"
USE_TZ = True
INSTALLED_APPS = ["django_celery_results"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": f"{__package__}.sqlite",
        "NAME": f"{PLACE.folder}/django.db",
        "OPTIONS": {"timeout": 20},  # seconds: worker and publisher share the file
    }
}

CELERY_BROKER_URL = PLACE.redis_url
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {"global_keyprefix": f"{PLACE.name}:"}
CELERY_RESULT_BACKEND = "django-db" if PLACE.results == "django" else PLACE.redis_url
CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS = {"global_keyprefix": f"{PLACE.name}:"}
CELERY_RESULT_EXTENDED = True
CELERY_TASK_DEFAULT_QUEUE = PLACE.name
CELERY_TASK_TRACK_STARTED = True
CELERY_TASK_SEND_SENT_EVENT = True
CELERY_WORKER_SEND_TASK_EVENTS = True
# Without these a worker hears, and is heard by, every other one on the server.
CELERY_CONTROL_EXCHANGE = PLACE.name
CELERY_EVENT_EXCHANGE = f"{PLACE.name}.events"

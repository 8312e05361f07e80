"""The configuration of every example, in each of its processes; an app of yours has its own.

``workers.py`` says in the environment which broker to use, and names this module as Celery's
``CELERY_CONFIG_MODULE``.
"""

import os
from pathlib import Path

from kombu.entity import Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES

#: Folder of this run, and what its queues and keys on a server begin with.
FOLDER = os.environ["EXAMPLE_FOLDER"]
PREFIX = os.environ["EXAMPLE_PREFIX"]
BROKER = os.environ["EXAMPLE_BROKER"]

broker_url = os.environ["EXAMPLE_URL"]
broker_connection_retry_on_startup = True
task_default_queue = PREFIX
# Else app.control would also speak to other apps' workers on the same server.
control_exchange = PREFIX
event_exchange = f"{PREFIX}.events"
worker_prefetch_multiplier = 1
result_expires = 3600
# So long a worker that was killed counts as alive; by default half a minute.
statekit_lease = 5.0

if BROKER == "redis":
    # Results and records are kept there too: no statekit_store is needed.
    result_backend = broker_url
    result_backend_transport_options = {"global_keyprefix": f"{PREFIX}."}
    broker_transport_options = {
        "global_keyprefix": f"{PREFIX}.",
        "visibility_timeout": int(os.environ["EXAMPLE_REDELIVER_AFTER"]),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 2,
    }
else:
    # Plain files, for whichever server there is keeps no results.
    result_backend = Path(FOLDER, "results").as_uri()
    statekit_store = f"sqlite:///{FOLDER}/states.db"

if BROKER == "rabbitmq":
    # Both go by themselves, too, where the story was killed before it could delete them.
    task_queues = [Queue(PREFIX, Exchange(PREFIX, auto_delete=True), PREFIX, expires=600)]

if BROKER == "files":
    TRANSPORT_ALIASES["filesystem"] = "examples.files:Transport"
    broker_transport_options = {
        "data_folder_in": f"{FOLDER}/queued",
        "data_folder_out": f"{FOLDER}/queued",
        "control_folder": f"{FOLDER}/broker",
        "polling_interval": 0.05,
    }
    # A worker whose processes are all busy would not hear app.control.
    worker_pool_putlocks = False

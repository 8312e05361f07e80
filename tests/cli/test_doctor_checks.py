"""Each check of the doctor: what it finds, how bad that is, and the line that changes it."""

import time
from datetime import timedelta

import pytest
from celery import Celery
from tests.servers import free_port

import celery_statekit
from celery_statekit import StatefulTask, States
from celery_statekit.attempt import Attempt
from celery_statekit.doctor import Finding, Level, examine, places
from celery_statekit.errors import StoreUnavailable
from celery_statekit.record import task_key
from celery_statekit.settings import Settings
from celery_statekit.stores import MemoryStore, SQLiteStore
from celery_statekit.stores.base import Diagnosis


def add(x, y):
    """A task's function."""
    return x + y


def with_tasks(app, **options):
    """The app, with one stateful task of these options."""
    app.task(base=StatefulTask, name="shop.add", **options)(add)
    return app


def test_nothing_is_wrong(make, said):
    """Where nothing is wrong, nothing is said to be."""
    assert said(with_tasks(make())) == []


# --- settings ------------------------------------------------------------------------------------


def test_every_bad_setting_is_told(make, said):
    """Misspelt and wrongly typed settings are all told, not only the first."""
    app = make(statekit_stroe="x", statekit_history="5", statekit_strict=1)

    faults = said(app, "settings")

    assert [fault.found.partition(":")[0] for fault in faults] == [
        "statekit_stroe", "statekit_history", "statekit_strict"
    ]  # fmt: skip
    assert all(fault.level is Level.MUST and fault.change for fault in faults)


def test_settings_of_a_namespace(tmp_path, said):
    """With ``namespace="CELERY"`` a setting counts behind it only, or in lower case."""

    class Source:
        CELERY_BROKER_URL = "memory://"
        CELERY_STATEKIT_STORE = f"sqlite:///{tmp_path}/states.db"
        CELERY_STATEKIT_HISTROY = 5
        STATEKIT_PREFIX = "shop"
        CELERY_STATEKIT_STRICT = "yes"

    app = Celery("shop", set_as_current=False)
    app.config_from_object(Source, namespace="CELERY")

    histroy, prefix, strict = said(app, "settings")

    assert "did you mean statekit_history?" in histroy.found
    assert "STATEKIT_PREFIX: setting that Celery does not read" in prefix.found
    assert "CELERY_STATEKIT_PREFIX" in prefix.change
    assert strict.found.startswith("statekit_strict: no flag")
    app.close()


def test_a_setting_in_capitals_without_a_namespace(said):
    """Celery reads no setting of ours in capitals where there is no namespace."""

    class Source:
        STATEKIT_STORE = "memory://"

    app = Celery("shop", set_as_current=False)
    app.config_from_object(Source)

    (fault,) = said(app, "settings")

    assert fault.change == "allowed: statekit_store"
    app.close()


def test_the_line_is_written_as_the_app_writes_it(said):
    """What to change is named behind the namespace where the app has one."""

    class Source:
        CELERY_BROKER_URL = "amqp://"

    app = Celery("shop", set_as_current=False)
    app.config_from_object(Source, namespace="CELERY")

    (store,) = said(app, "store")

    assert store.level is Level.MUST
    assert store.change.startswith("CELERY_STATEKIT_STORE = ")
    app.close()


# --- the store -----------------------------------------------------------------------------------


def test_no_store_follows(make, the):
    """A store that cannot be derived must be named."""
    fault = the(make(statekit_store="auto", broker_url="amqp://", result_backend=None), "store")

    assert fault.level is Level.MUST
    assert "no store follows" in fault.found
    assert fault.change == "app.conf.statekit_store = 'redis://localhost:6379/0'"


def test_an_unknown_store(make, the):
    """A URL of which there is no store is told."""
    fault = the(make(statekit_store="ftp://shop"), "store")

    assert fault.level is Level.MUST
    assert "no store of this release has the scheme" in fault.found


def test_a_store_in_memory(make, the):
    """It must be another one, unless the broker is in memory too."""
    assert the(make(statekit_store="memory://"), "store.reach").level is Level.MUST
    both = make(statekit_store="memory://", broker_url="memory://")
    assert the(both, "store.reach").level is Level.OK


@pytest.mark.parametrize(
    ("broker", "level"),
    [
        ("redis://localhost:6379/0", Level.OK),
        ("sqla+sqlite:///b.db", Level.OK),
        ("filesystem://", Level.OK),
        ("redis://broker.invalid/0", Level.WARNING),
        (["redis://broker.invalid/0", "redis://localhost"], Level.WARNING),
        ("redis://localhost/0;redis://other/0", Level.OK),
    ],
)
def test_a_file_and_several_hosts(make, the, broker, level):
    """A file is one host's: with a broker elsewhere there may be several."""
    assert the(make(broker_url=broker), "store.reach").level is level


def test_a_file_on_a_network(make, the, tmp_path, monkeypatch):
    """A file that is shared over the network is told by the type of its file system."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr(places, "MOUNTS", mounts)

    fault = the(make(), "store.reach")

    assert fault.level is Level.WARNING
    assert "type nfs4" in fault.found
    monkeypatch.setattr(places, "MOUNTS", tmp_path / "no such file")
    assert the(make(), "store.reach").level is Level.OK


def test_the_round_trip_leaves_nothing(make, the):
    """What the doctor writes is gone afterwards."""
    app = make()

    assert the(app, "store.round_trip").level is Level.OK
    store = Settings.of(app).store
    assert store.count("statekit:doctor") == {}
    assert store.count("statekit:task") == {}


class Broken(MemoryStore):
    """A store that reads, and cannot be trusted otherwise."""

    def __init__(self, fault):
        super().__init__(f"broken by {fault}")
        self.fault = fault

    def write(self, record, **rest):
        if self.fault == "refuses":
            raise StoreUnavailable(self.name, "no right to write")
        return True if self.fault == "forgets" else super().write(record, **rest)

    def history(self, key, after=0, limit=100):
        return [] if self.fault == "no history" else super().history(key, after, limit)

    def delete(self, key):
        return True if self.fault == "keeps" else super().delete(key)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("refuses", "no right to write"),
        ("forgets", "what was read is not what was written"),
        ("no history", "its history is not what was written"),
        ("keeps", "it could not be removed"),
    ],
)
def test_a_store_that_breaks_its_promise(make, the, fault, told):
    """A round trip that fails says where."""
    app = make()
    vars(Settings.of(app))["store"] = Broken(fault)

    found = the(app, "store.round_trip")

    assert found.level is Level.MUST
    assert told in found.found


def test_what_the_store_can_do(make, the):
    """Its abilities are told, and those that it lacks."""
    found = the(make(), "store.abilities").found

    assert "it has leases" in found
    assert "not one write with Celery's result" in found


class Deaf(MemoryStore):
    """A store that tells nobody of its writes."""

    def subscribe(self, key, wake):
        return lambda: None


def test_notifications_that_do_not_come(make, the, monkeypatch):
    """Without them watchers ask again and again; that is a warning."""
    monkeypatch.setattr("celery_statekit.doctor.store._NOTICE", 0.05)
    app = make()
    vars(Settings.of(app))["store"] = Deaf("deaf")

    assert the(app, "store.notices").level is Level.WARNING


class Hanging(MemoryStore):
    """A store that never answers."""

    def read(self, key):
        time.sleep(30)


def test_a_store_that_hangs(make):
    """It is not waited for longer than the time-out, and told to hang."""
    app = make()
    vars(Settings.of(app))["store"] = Hanging("hanging")

    (found,) = (each for each in examine(app, timeout=0.2) if each.name == "store")

    assert found.level is Level.MUST
    assert found.found == "no answer within 0.2 s"


class Served(MemoryStore):
    """A store with a server of this version, whose clock is so many seconds ahead."""

    def __init__(self, ahead, product="Cellar", version="1"):
        super().__init__(f"{product} {version} ahead by {ahead}")
        self.ahead, self.product, self.version = ahead, product, version

    def diagnose(self):
        clock = time.time() + self.ahead
        return Diagnosis(product=self.product, version=self.version, time=clock)


@pytest.mark.parametrize(
    ("product", "version", "level"),
    [
        ("Cellar", "1", Level.OK),
        ("PostgreSQL", "15.3", Level.OK),
        ("PostgreSQL", "12.1", Level.OK),
        ("PostgreSQL", "11.9", Level.MUST),
        ("MariaDB", "10.5.8", Level.MUST),
        ("MariaDB", "10.11", Level.OK),
        ("MySQL", "5.7.40", Level.MUST),
        ("Redis", "6.0.16", Level.MUST),
        ("Redis", "6.2.0", Level.OK),
        ("Redis", "", Level.WARNING),
    ],
)
def test_versions_of_servers(make, the, product, version, level):
    """A server that is too old is told, and one that hides its version."""
    app = make()
    vars(Settings.of(app))["store"] = Served(0, product, version)

    assert the(app, "server").level is level


@pytest.mark.parametrize(
    ("ahead", "level"), [(0, Level.OK), (-0.9, Level.OK), (7, Level.WARNING), (-7, Level.WARNING)]
)
def test_clocks(make, the, ahead, level):
    """A server whose clock is off by more than a second is told."""
    app = make()
    vars(Settings.of(app))["store"] = Served(ahead)

    found = the(app, "clock")

    assert found.level is level
    assert f"differ by {float(abs(ahead))} s" in found.found


def test_a_check_that_breaks_hides_no_other(make, the):
    """What cannot be examined must be changed, and the rest is examined."""
    app = make(accept_content=5)

    broken = the(app, "serializers")

    assert broken.level is Level.MUST
    assert "could not be examined: TypeError" in broken.found
    assert the(app, "store").level is Level.OK


def test_a_run_that_outlives_results(make, the, tmp_path):
    """A record that stands in a running state for longer than results are kept is told."""
    app = with_tasks(make(result_expires=3600))
    yesterday = SQLiteStore(tmp_path / "states.db", now=lambda: time.time() - 86400)
    vars(Settings.of(app))["store"] = yesterday
    tracker = Settings.of(app).tracker
    Attempt.of(tracker, "t-1", "shop.add", app.tasks["shop.add"]._flow, worker="w").claim()
    tracker.queue("t-2", "shop.add")
    del vars(Settings.of(app))["store"]

    found = the(app, "long_runs")

    assert found.level is Level.WARNING
    assert task_key("t-1") in found.found
    assert found.change == "app.conf.result_expires = 7200"


# --- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "level"),
    [
        (None, Level.WARNING),
        ("rpc://", Level.WARNING),
        ("cache+memory://", Level.MUST),
        ("db+sqlite://", Level.MUST),
        ("db+sqlite:///{folder}/results.db", Level.OK),
        ("{redis}", Level.OK),
        ("celery_statekit.backends:RedisBackend+{redis}", Level.OK),
        ("file:///no/such/folder", Level.MUST),
    ],
)
def test_result_backends(make, the, tmp_path, redis_url, url, level):
    """One that is missing, or that not all can see, is told."""
    url = url and url.format(folder=tmp_path, redis=redis_url)

    assert the(make(result_backend=url), "result_backend").level is level


def test_a_result_backend_that_does_not_answer(make, the):
    """It is asked once, also where Celery would repeat for ever; its password is not shown."""
    url = f"redis://:hidden@127.0.0.1:{free_port()}/0"
    found = the(make(result_backend=url, result_backend_always_retry=True), "result_backend")

    assert found.level is Level.MUST
    assert found.found.startswith("redis:// cannot be read: ")
    assert found.change.startswith("see that it runs")
    assert "hidden" not in found.found


def test_a_database_that_does_not_answer(make, redis_url):
    """Celery tries for long to make its tables; the store is examined all the same."""
    url = f"db+mysql+pymysql://root@127.0.0.1:{free_port()}/results"
    findings = examine(make(result_backend=url, statekit_store=redis_url), timeout=2)

    (found,) = (each for each in findings if each.name == "result_backend")
    assert found.level is Level.MUST
    assert [each.level for each in findings if each.name == "store.one_write"] == [Level.OK]


def test_a_result_backend_that_is_none(make, said):
    """One that Celery does not know is told once, without its password."""
    (found,) = (each for each in said(with_tasks(make(result_backend="foo://:hidden@x"))))

    assert (found.level, found.name) == (Level.MUST, "result_backend")
    assert found.found.startswith("foo:// cannot be made: ")
    assert "hidden" not in found.found


@pytest.mark.parametrize(
    ("conf", "options", "level"),
    [
        ({"task_time_limit": 90000}, {}, Level.MUST),
        ({"task_soft_time_limit": 90000}, {}, Level.MUST),
        ({}, {"time_limit": 90000}, Level.MUST),
        ({"result_expires": timedelta(hours=1)}, {"soft_time_limit": 4000}, Level.MUST),
        ({"task_time_limit": 90000}, {"ignore_result": True}, Level.OK),
        ({"task_time_limit": 90000}, {"time_limit": 60}, Level.OK),
        ({"task_time_limit": 80000}, {}, Level.OK),
        ({"result_expires": None}, {"time_limit": 90000}, Level.WARNING),
    ],
)
def test_result_expires(make, the, conf, options, level):
    """Results must be kept for longer than a task whose result is kept may run."""
    found = the(with_tasks(make(**conf), **options), "result_expires")

    assert found.level is level
    if level is Level.MUST:
        assert found.change.startswith("app.conf.result_expires = ")


@pytest.mark.parametrize("expires", ["x", -5, float("nan"), float("inf"), timedelta(-1), [60]])
def test_a_result_expires_that_is_no_duration(make, said, expires):
    """It is told once, and what depends on it is told to wait."""
    must, waits = said(with_tasks(make(result_expires=expires)))[::-1]

    assert (must.level, must.name) == (Level.MUST, "result_expires")
    assert must.found.startswith("result_expires: no duration")
    assert (waits.level, waits.name) == (Level.WARNING, "result_backend")


def test_a_time_limit_that_is_no_duration(make, the):
    """It is told with the name of its task."""
    found = the(with_tasks(make(), time_limit="x"), "result_expires")

    assert found.level is Level.MUST
    assert "time_limit of shop.add" in found.found


@pytest.mark.parametrize(
    "conf",
    [
        {"accept_content": ["json", "pickle"]},
        {"accept_content": ["application/x-python-serialize"]},
        {"result_accept_content": ["pickle"]},
        {"task_serializer": "pickle"},
        {"result_serializer": "pickle"},
    ],
)
def test_pickle(make, the, conf):
    """Where pickle is written or read, it is told."""
    found = the(make(**conf), "serializers")

    assert found.level is Level.WARNING
    assert found.change.startswith(f"app.conf.{next(iter(conf))} = ")


def test_retries_without_an_end(make, said):
    """A worker that waits for the result backend for ever is told."""
    assert said(make(result_backend_always_retry=True), "result_retries")
    assert not said(
        make(result_backend_always_retry=True, result_backend_max_retries=3), "result_retries"
    )


# --- the broker ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "level"),
    [
        ({"broker_url": "filesystem://"}, Level.WARNING),
        ({"broker_url": "memory://"}, Level.WARNING),
        ({"task_always_eager": True}, Level.WARNING),
        ({"broker_url": "foo://"}, Level.MUST),
    ],
)
def test_brokers(make, the, conf, level):
    """A broker that loses messages, and one that is none, are told."""
    assert the(make(**conf), "broker").level is level


@pytest.mark.parametrize("kind", ["redis_url", "rabbitmq_url"])
def test_a_broker_that_answers(make, the, request, kind):
    """It is connected to; of several that stand in for one another one is enough."""
    url = request.getfixturevalue(kind)
    dead = f"{url.partition('://')[0]}://127.0.0.1:{free_port()}//"

    assert the(make(broker_url=url), "broker").found.endswith(":// answers")
    assert the(make(broker_url=[dead, url]), "broker").level is Level.OK


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_does_not_answer(make, the, scheme):
    """Without it nothing runs; its password is not shown."""
    found = the(make(broker_url=f"{scheme}://x:hidden@127.0.0.1:{free_port()}//"), "broker")

    assert found.level is Level.MUST
    assert found.found.startswith(f"{scheme}:// cannot be reached: ")
    assert found.change.startswith("see that it runs")
    assert "hidden" not in found.found


@pytest.mark.parametrize(
    ("conf", "options", "level"),
    [
        ({}, {}, Level.OK),
        ({}, {"acks_late": True}, Level.WARNING),
        ({}, {"acks_late": True, "time_limit": 60}, Level.OK),
        ({}, {"acks_late": True, "time_limit": 3600}, Level.MUST),
        ({"task_acks_late": True, "task_soft_time_limit": 4000}, {}, Level.MUST),
        ({"task_time_limit": 4000}, {}, Level.OK),
        (
            {"broker_transport_options": {"visibility_timeout": 9000}},
            {"acks_late": True, "time_limit": 4000},
            Level.OK,
        ),
    ],
)
def test_visibility_timeout(make, the, redis_url, conf, options, level):
    """With acks_late no task may run for as long as Redis waits for its acknowledgement."""
    found = the(with_tasks(make(broker_url=redis_url, **conf), **options), "visibility")

    assert found.level is level
    if level is Level.MUST:
        assert found.change.startswith("app.conf.broker_transport_options = ")


@pytest.mark.parametrize("seconds", [None, "3600", 0, -1, float("nan")])
def test_a_visibility_timeout_that_is_no_duration(make, the, redis_url, seconds):
    """Redis's transport subtracts it from the time, so it must be a number over 0."""
    conf = {"broker_transport_options": {"visibility_timeout": seconds}}

    found = the(make(broker_url=redis_url, **conf), "visibility")

    assert found.level is Level.MUST
    assert "'visibility_timeout'" in found.found


def test_another_broker_has_no_visibility_timeout(make, said):
    """It is Redis's alone."""
    app = with_tasks(make(), acks_late=True, time_limit=9999)

    assert said(app, "visibility") == []


# --- passwords -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://x:secret@host/0", "redis://***@host/0"),
        ("at redis://:secret@host.", "at redis://***@host."),
        ("redis://x@host", "redis://***@host"),
        ("redis://:se/c@ret@host", "redis://***@host"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("redis://x:secret@[::1]:6379", "redis://***@[::1]:6379"),
        ("sqlite:////srv/a@b/c.db", "sqlite:////srv/a@b/c.db"),
        ("redis://@host", "redis://@host"),
        ("redis://[user:password@]host[:port]", "redis://[user:password@]host[:port]"),
    ],
)
def test_what_is_masked(text, shown):
    """User and password of a URL, and nothing else."""
    assert Finding.ok("x", text).found == shown


# --- tasks ---------------------------------------------------------------------------------------


def test_tasks_are_counted(make, the):
    """Tasks of which no record is kept are named, and how to keep one of all."""
    app = make()
    assert the(app, "tasks").level is Level.WARNING
    app = make()
    app.task(name="shop.plain")(add)
    assert "setup(app)" in the(app, "tasks").change
    app = make()
    app.task(name="shop.plain")(add)
    assert the(with_tasks(app), "tasks").found == (
        "1 of 2 tasks are stateful; no record is kept of shop.plain"
    )


def test_every_task_whose_states_cannot_work_is_told(make, said):
    """The first one stops Celery; the others are examined all the same."""

    class Trap(States):
        IN = "In"
        OUT = "Out"
        __flow__ = {"IN": "IN"}

    class Reserved(States):
        SUCCESS = "Done"

    app = make()
    app.task(base=StatefulTask, states=Trap, name="shop.trap")(add)
    app.task(base=StatefulTask, states=Reserved, name="shop.reserved")(add)
    app.task(base=StatefulTask, name="shop.good")(add)

    *bad, count = said(app, "tasks")

    # Celery makes those that all apps share in no order.
    reserved, trap = sorted(finding.found for finding in bad if finding.must_change)
    assert "reserved name" in reserved
    assert "Trap" in trap
    assert "shop.good" in app.tasks
    assert count.level is Level.OK


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("5.4.0", Level.MUST),
        ("5.5.3", Level.WARNING),
        ("5.6.3", Level.OK),
        ("5.7.0rc1", Level.OK),
        ("6.0.0", Level.WARNING),
    ],
)
def test_versions(make, the, monkeypatch, version, level):
    """A Celery that is too old, little tested or not known yet is told."""
    monkeypatch.setattr("celery.__version__", version)

    assert the(make(), "versions").level is level


def test_setup_makes_all_tasks_stateful(make, the):
    """After ``setup`` no task is without a record."""
    app = celery_statekit.setup(make())
    app.task(name="shop.add")(add)

    assert the(app, "tasks").found == "1 of 1 tasks are stateful"

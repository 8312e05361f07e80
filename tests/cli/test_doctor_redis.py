"""The doctor and a Redis that keeps states: what it forgets, when, and what it refuses to tell."""

import pytest
import redis

from celery_statekit import StatefulTask, setup
from celery_statekit.doctor import Level

PROJECT = """
    from celery import Celery
    from celery_statekit import StatefulTask, setup
    app = Celery("proj", broker="{url}", backend="{url}")

    @app.task(base=StatefulTask)
    def add(x, y):
        return x + y
"""


def add(x, y):
    """A task's function."""
    return x + y


@pytest.fixture
def app_on(make, own_redis):
    """An app whose broker, backend and store are a Redis of the test's own, with these options."""

    def app_on(**options):
        url = own_redis(**options).url
        app = make(broker_url=url, result_backend=url, statekit_store="auto")
        app.task(base=StatefulTask, name="shop.add")(add)
        return app

    return app_on


def test_a_healthy_project(doctor, own_redis):
    """With a file that is appended to, and nothing evicted, all is well; no password is shown."""
    url = own_redis(appendonly=True, maxmemory="500mb", requirepass="hidden").url

    ended = doctor(PROJECT.format(url=url))

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 warning, 0 must change" in ended.stdout
    assert "one write with Celery's result" in ended.stdout
    assert "hidden" not in ended.stdout + ended.stderr


def test_a_redis_that_forgets(doctor, own_redis):
    """One that keeps nothing on disk and evicts whatever it likes must be changed, twice."""
    url = own_redis(maxmemory="100mb", maxmemory_policy="allkeys-lru").url

    ended = doctor(PROJECT.format(url=url))

    must = [line for line in ended.stdout.splitlines() if line.startswith("must")]
    assert ended.returncode == 1
    assert [line.split()[2] for line in must] == ["redis.persistence", "redis.eviction"]
    assert must[0].endswith("-> redis.conf: appendonly yes")
    assert must[1].endswith("-> redis.conf: maxmemory-policy noeviction")


def test_a_redis_that_hangs(doctor, own_redis):
    """A server that takes connections and says nothing is not waited for."""
    server = own_redis()
    server.pause()

    ended = doctor(PROJECT.format(url=server.url), "--timeout", "0.5")

    assert ended.returncode == 1
    assert "no answer within 0.5 s" in ended.stdout


@pytest.mark.parametrize(
    ("options", "level", "told"),
    [
        ({"appendonly": True}, Level.OK, "append-only file"),
        ({"save": "3600 1"}, Level.WARNING, "snapshots only (save 3600 1)"),
        ({}, Level.MUST, "a restart loses every state"),
        ({"appendonly": True, "rename_command": 'CONFIG ""'}, Level.OK, "append-only file"),
        ({"rename_command": 'CONFIG ""'}, Level.WARNING, "could not be read"),
        ({"rename_command": 'INFO ""'}, Level.WARNING, "could not be read"),
    ],
)
def test_persistence(app_on, the, options, level, told):
    """What a crash or restart loses; what is refused is said to be unknown."""
    found = the(app_on(**options), "redis.persistence")

    assert found.level is level
    assert told in found.found
    assert (found.change == "") is (level is Level.OK)


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({}, Level.OK),
        ({"maxmemory_policy": "volatile-lru"}, Level.WARNING),
        ({"maxmemory_policy": "volatile-ttl"}, Level.WARNING),
        ({"maxmemory_policy": "allkeys-lru"}, Level.MUST),
        ({"maxmemory_policy": "allkeys-random"}, Level.MUST),
        ({"rename_command": 'INFO ""'}, Level.WARNING),
    ],
)
def test_eviction(app_on, the, options, level):
    """Only a policy that forgets no state of a live run, or of a client, may stand."""
    assert the(app_on(**options), "redis.eviction").level is level


def test_a_server_that_is_full(app_on, the):
    """Little room left is told, and that it takes nothing any more."""
    assert the(app_on(maxmemory="500mb"), "redis.memory").level is Level.OK
    app = app_on(maxmemory="600kb")
    assert the(app, "redis.memory").level is Level.WARNING
    trip = the(app, "store.round_trip")
    assert trip.level is Level.MUST
    assert trip.change.startswith("make room")


def test_what_it_refuses_to_tell_stops_nothing(app_on, said):
    """With neither CONFIG nor INFO the rest is told, and nothing must be changed."""
    app = app_on(user="default on nopass ~* &* +@all -config -info")

    refused = said(app)

    assert {finding.level for finding in refused} == {Level.WARNING}, refused
    assert {finding.name for finding in refused} == {
        "server", "redis.persistence", "redis.eviction"
    }  # fmt: skip


def test_who_may_not_write(app_on, the):
    """A user who may only read is told so."""
    app = app_on(user="default on nopass ~* &* -@all +@read +@connection +@scripting +info")

    trip = the(app, "store.round_trip")

    assert trip.level is Level.MUST
    assert trip.change == "give its user the right to write"


def test_nothing_is_left(app_on, said):
    """After the doctor the server has no key that it did not have before."""
    app = app_on()
    said(app)

    with redis.Redis.from_url(app.conf.broker_url) as client:
        assert client.keys() == []


def test_who_may_not_listen(app_on, the):
    """A user who may not subscribe gets no notification; that is no failure."""
    app = app_on(user="default on nopass ~* resetchannels +@all")

    assert the(app, "store.notices").level is Level.WARNING


def test_one_write(own_redis, make, the):
    """Whether a result and its record can differ is told: not after ``setup``."""
    url = own_redis().url
    conf = {"broker_url": url, "result_backend": url, "statekit_store": "auto"}

    assert "are two writes" in the(make(**conf), "store.one_write").found
    assert "are one write" in the(setup(make(**conf)), "store.one_write").found


def test_replicas(own_redis, make, the):
    """A primary with a replica is well; a replica is no place for states."""
    primary = own_redis(appendonly=True)
    replica = own_redis(replicaof=f"127.0.0.1 {primary.port}")

    on_replica = make(statekit_store=replica.url)
    assert the(on_replica, "redis.replicas").level is Level.MUST
    assert "the URL of the primary" in the(on_replica, "store.round_trip").change
    assert the(make(statekit_store=primary.url), "redis.replicas").found.startswith("1 replica")

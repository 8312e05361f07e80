"""The doctor and a SQL server that keeps states."""

import pytest
from tests.servers import free_port

from celery_statekit.doctor import Level, examine


@pytest.fixture(params=["postgresql", "mariadb"])
def url(request):
    """A database that is ours alone."""
    return request.getfixturevalue(f"{request.param}_url")


def test_a_healthy_database(make, url):
    """It answers, keeps what is written, and says its version and time."""
    app = make(result_backend=f"db+{url}", statekit_store=url)

    found = {finding.name: finding for finding in examine(app, timeout=60)}

    assert {name for name, each in found.items() if each.level is not Level.OK} == {"tasks"}
    assert found["server"].found.split()[0] in {"PostgreSQL", "MariaDB", "MySQL"}
    assert {"store", "store.round_trip", "store.reach", "clock", "long_runs"} <= found.keys()


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql"])
def test_a_dead_database(make, the, driver):
    """It is told without its password."""
    url = f"{driver}://shop:hidden@127.0.0.1:{free_port()}/shop"

    found = the(make(statekit_store=url), "store")

    assert found.level is Level.MUST
    assert "hidden" not in found.found + found.change

"""Servers of a test's own: on a free port, in a folder of their own, to be broken at will.

They end with the test, and within moments of a test run that is killed itself.
"""

from tests.servers.guard import Guard, new_folder
from tests.servers.kinds import MariaDBServer, PostgresServer, RabbitMQServer, RedisServer
from tests.servers.server import PATIENCE, Server, ServerMissing, family, find, free_port

__all__ = [
    "PATIENCE",
    "Guard",
    "MariaDBServer",
    "PostgresServer",
    "RabbitMQServer",
    "RedisServer",
    "Server",
    "ServerMissing",
    "family",
    "find",
    "free_port",
    "new_folder",
]

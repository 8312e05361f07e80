"""The library on real workers, through pytest-celery."""

from celery import _state

_current = _state._tls.current_app
import pytest_celery  # noqa: E402, F401 - imported here for what stands around it

# It makes an app when it is imported, which would be the current one of every test of the process.
_state._tls.current_app = _current

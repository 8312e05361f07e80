"""What each outcome comes to on a pool of processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from .cells import Configuration
from .told import check_outcomes, of_pool

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(300)]


@pytest.mark.parametrize("configuration", of_pool("prefork"))
def test_outcomes_are_as_told(
    configuration: Configuration, redis_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """On real workers each outcome leaves the history and the result that its cell tells."""
    check_outcomes(configuration, redis_url, tmp_path, request)

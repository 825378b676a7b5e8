"""One server with the fast fake model, for all tests that change none of its settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from made_server import started


@pytest.fixture(scope="session")
def client() -> Iterator[TestClient]:
    with started() as client:
        yield client

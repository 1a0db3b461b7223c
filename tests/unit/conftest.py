"""The endpoint's server: one per process, calm again after each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.app_server import Served


@pytest.fixture(scope="session")
def served_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from tests.unit.app_server import app_server  # late: most tests need no endpoint

    with app_server(tmp_path_factory.mktemp("tokenizer")) as served:
        yield served


@pytest.fixture
def served(served_once: Served) -> Iterator[Served]:
    yield served_once
    served_once.calm()

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ray_cluster import NODE, nodes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes with a processor each."""
    with nodes(NODE, 2) as made:
        yield made

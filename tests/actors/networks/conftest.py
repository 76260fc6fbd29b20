"""Fixtures of the networks' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def meta() -> Iterator[None]:
    """Networks are built without numbers, for what their names and shapes tell."""
    with torch.device("meta"):
        yield

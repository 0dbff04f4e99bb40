"""Shared by all tests."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small tensors are quickest on one thread, and sums then have one order.

    For the session, since fixtures of modules train too.
    """
    torch.set_num_threads(1)

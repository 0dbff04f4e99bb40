"""Shared by all tests."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small tensors are quickest on one thread, and sums then have one order.

    For the session, since fixtures of modules train too.
    """
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Start with the longest file, so that other processes have done the rest when it ends."""
    items.sort(key=lambda item: item.path.name != "test_workflow.py")

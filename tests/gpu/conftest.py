"""What needs an NVIDIA GPU. Elsewhere every test here is skipped; `make test` on a machine with one runs them."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "/gpu/" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))

"""The sandbox of this machine, or the reason why it has none."""

import pytest
from posttrain.errors import DependencyError
from posttrain.sandbox.grade import LocalSandbox


@pytest.fixture(scope="session")
def sandbox():
    try:
        return LocalSandbox()
    except DependencyError as error:
        pytest.skip(f"refused, as it should be where nothing can be promised: {error}")

"""The small methods of plants.py, as a fixture: the tests of this folder are not a package."""

import importlib.util
import sys
from pathlib import Path

import pytest


def load_plants():
    name = "conformance_plants"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("plants.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def pytest_generate_tests(metafunc):
    """``planted``: each check with its plant. ``shipped``: each bug of peers.
    ``schema``: each schema with a good method."""
    plants = load_plants()
    if "planted" in metafunc.fixturenames:
        rows = {**plants.STATIC, **plants.LOSS, **plants.TRAINING}
        metafunc.parametrize("planted", list(rows.items()), ids=list(rows))
    if "shipped" in metafunc.fixturenames:
        metafunc.parametrize("shipped", list(plants.SHIPPED.values()), ids=list(plants.SHIPPED))
    if "schema" in metafunc.fixturenames:
        metafunc.parametrize("schema", list(plants.GOOD))


@pytest.fixture
def plants():
    return load_plants()

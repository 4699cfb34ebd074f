import importlib.metadata

import pytest

SHIPPED = {
    "math": "posttrain.rewards.verifiers:math",
    "gsm8k": "posttrain.rewards.verifiers:gsm8k",
    "regex": "posttrain.rewards.text:regex",
    "length": "posttrain.rewards.text:length",
}


@pytest.fixture
def install(monkeypatch):
    """Make the metadata list exactly these rewards: ``install(name=("package", "module:function"))``."""

    def set_points(**points):
        found = []
        for name, (package, value) in points.items():
            point = importlib.metadata.EntryPoint(name.rstrip("_"), value, "posttrain.rewards")
            found.append(point._for(type("Distribution", (), {"name": package})()))
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda group: found if group == "posttrain.rewards" else []
        )

    return set_points


@pytest.fixture
def shipped(install):
    install(**{name: ("posttrain", value) for name, value in SHIPPED.items()})

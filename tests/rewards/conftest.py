import pytest
from posttrain.catalogue import entries

SHIPPED = {
    "math": "posttrain.rewards.verifiers:math",
    "gsm8k": "posttrain.rewards.verifiers:gsm8k",
    "regex": "posttrain.rewards.text:regex",
    "length": "posttrain.rewards.text:length",
}


class Package:
    """Metadata of an installed package with one reward."""

    def __init__(self, name, reward, value):
        self.files = {
            "METADATA": f"Name: {name}\nVersion: 1\n",
            "entry_points.txt": f"[posttrain.rewards]\n{reward} = {value}\n",
        }

    def read_text(self, file):
        return self.files.get(file)


@pytest.fixture
def install(monkeypatch):
    """Make the metadata list exactly these rewards: ``install(name=("package", "module:function"))``."""

    def set_points(**points):
        found = [Package(package, name.rstrip("_"), value) for name, (package, value) in points.items()]
        monkeypatch.setattr(entries, "_distributions", lambda: found)

    return set_points


@pytest.fixture
def shipped(install):
    install(**{name: ("posttrain", value) for name, value in SHIPPED.items()})

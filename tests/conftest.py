"""Fixtures of the tests about plugins: packages that look installed, in a folder on the path."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from posttrain.catalogue import discovery

ROOT = Path(__file__).resolve().parent.parent
CARD = """\
name = "{name}"
version = "{version}"
tier = "{tier}"
summary = "Summary of {name}."
schema = "{schema}"
requires = ["{requires}"]
"""
CODE = '''\
"""A method for tests.

Metrics:
- nll: falls.
"""

from dataclasses import dataclass

from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.1
    """Strength."""


@hookimpl
def posttrain_loss(policy, config):
    """Loss."""
    return policy * config.beta
'''


class Site:
    """A folder like site-packages."""

    def __init__(self, path: Path):
        self.path = path

    def add(
        self, name, *, distribution=None, module=None, card=None, code=CODE, version="1.2.0", key=None, **facts
    ) -> Path:
        """Lay down a method's package and its metadata; returns the package. ``card`` replaces the card's text."""
        distribution = distribution or f"posttrain-method-{name}"
        module = module or f"posttrain_method_{name.replace('-', '_')}"
        facts = {"tier": "experimental", "schema": "preference", "requires": "posttrain>=0.1,<1", **facts}
        text = CARD.format(name=name, version=version, **facts) if card is None else card
        package = self.path / module
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text(code, encoding="utf-8")
        if text:
            (package / "method.toml").write_text(text, encoding="utf-8")
        self.metadata(distribution, version, f"[posttrain.methods]\n{key or name} = {module}\n")
        return package

    def metadata(self, distribution: str, version: str, entry_points: str) -> None:
        """Lay down the metadata of a distribution."""
        info = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {distribution}\nVersion: {version}\n\nText.\n")
        (info / "entry_points.txt").write_text(entry_points)
        discovery.installed.cache_clear()

    def run(self, *words: str, code: str | None = None) -> subprocess.CompletedProcess:
        """The command, or Python code, in a new process that sees this folder."""
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "core"), str(ROOT / "testkit"), str(self.path)])
        }
        command = [sys.executable, *(["-c", code] if code else ["-m", "posttrain"]), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder on the import path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    discovery.installed.cache_clear()
    yield Site(folder)
    discovery.installed.cache_clear()
    for name in [name for name in sys.modules if name.startswith("posttrain_method_fake")]:
        del sys.modules[name]
    importlib.invalidate_caches()

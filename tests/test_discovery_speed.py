"""Listing and showing among 100 installed plugins import neither torch nor any plugin, and are quick."""

import importlib.util
import json
import sys
import time
from importlib.machinery import FileFinder

import pytest
from posttrain.catalogue import discovery

#: Modules that only a run needs. A plugin's own module would mean that discovery runs foreign code.
FORBIDDEN = ("torch", "transformers", "datasets", "peft", "accelerate", "numpy", "posttrain_method_")
PROBE = """
import sys
from posttrain.cli.main import main
code = main(sys.argv[1:])
loaded = sorted(name for name in sys.modules if name.startswith({forbidden!r}))
print("LOADED", loaded, file=sys.stderr)
sys.exit(code)
"""
#: Seconds for the whole process. It takes 0.2 where nothing else runs; the strict part is what gets imported.
BOUND = 2.0


@pytest.fixture
def hundred(site):
    for number in range(100):
        site.add(f"fake-{number}", code="raise SystemExit('a plugin was imported')")
    return site


@pytest.mark.parametrize(
    "words", [("list-methods",), ("list-methods", "--available", "--json"), ("show", "fake-7", "--json"), ("plugins",)]
)
def test_nothing_heavy_is_imported(hundred, words):
    broken = hundred.path / "posttrain_method_fake_7" / "__init__.py"
    broken.write_text('"""Doc."""\nraise SystemExit("a plugin was imported")\n')
    started = time.perf_counter()
    result = hundred.run(*words, code=PROBE.format(forbidden=FORBIDDEN))
    seconds = time.perf_counter() - started
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "LOADED []"
    assert seconds < BOUND


def test_all_hundred_are_listed(hundred):
    listed = json.loads(hundred.run("list-methods", "--json").stdout)
    assert {row["name"] for row in listed} >= {f"fake-{number}" for number in range(100)}


def test_importing_the_package_is_light(site):
    code = "import posttrain, sys; print([m for m in sys.modules if m.startswith(('torch', 'transformers', 'pluggy'))])"
    assert site.run(code=code).stdout.strip() == "[]"


def test_a_module_is_looked_up_in_the_one_entry_that_holds_it(tmp_path, monkeypatch):
    """The first of two entries wins, as in an import, and none of the forty others is asked."""
    for number in range(42):
        folder = tmp_path / str(number)
        (folder / ("posttrain_method_looked_up" if number in (20, 30) else f"other_{number}")).mkdir(parents=True)
    for number in (20, 30):
        (tmp_path / str(number) / "posttrain_method_looked_up" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [*(str(tmp_path / str(number)) for number in range(42)), *sys.path])
    expected = importlib.util.find_spec("posttrain_method_looked_up")
    places = discovery._places()
    asked = []
    plain = FileFinder.find_spec
    monkeypatch.setattr(FileFinder, "find_spec", lambda self, *given: asked.append(self.path) or plain(self, *given))
    assert discovery._spec("posttrain_method_looked_up", places).origin == expected.origin
    assert asked == [str(tmp_path / "20")]
    assert discovery._spec("posttrain_method_nowhere", places) is None

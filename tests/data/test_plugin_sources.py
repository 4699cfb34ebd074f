"""Rows from a plugin's source, found by name and imported only when they are read."""

import pytest
from posttrain.data import read_rows
from posttrain.errors import DataError, PluginError
from posttrain.settings import Settings

CODE = """
def rows(argument):
    for number in range(int(argument or 2)):
        yield {"prompt": f"{number}?", "answer": "x"}


def broken(argument):
    return ["not a row"]
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A folder on the path with one installed source."""
    (tmp_path / "fake_source_module.py").write_text(CODE)
    info = tmp_path / "fake_source-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: fake-source\nVersion: 1\n")
    values = "good = fake_source_module:rows\nbad = fake_source_module:broken\nnone = fake_source_module\n"
    (info / "entry_points.txt").write_text(f"[posttrain.sources]\n{values}")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_rows_of_a_plugin(plugin):
    assert [row["prompt"] for row in read_rows(["good:3"], ("prompt",), Settings().data)] == ["0?", "1?", "2?"]
    assert len(read_rows(["good"], ("prompt",), Settings().data)) == 2


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("bad:1", DataError, r"^bad row 1: is 'not a row', expected a dictionary"),
        ("none", PluginError, r"^Source 'none' is 'fake_source_module', expected MODULE:FUNCTION\.$"),
    ],
)
def test_broken_sources(plugin, name, kind, text):
    with pytest.raises(kind, match=text):
        read_rows([name], ("prompt",), Settings().data)

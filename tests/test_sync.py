"""What is generated from cards: complete, readable again, stale exactly when a source changed."""

import hashlib
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from posttrain.authoring import listing, sync, toml
from posttrain.authoring.samples import SAMPLES
from posttrain.catalogue.cards import SCHEMAS
from posttrain.cli.main import main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def copy(tmp_path):
    """A repository with one method, generated files not yet written."""
    root = tmp_path / "repository"
    (root / "core" / "posttrain" / "catalogue").mkdir(parents=True)
    (root / "core" / "posttrain" / "catalogue" / "catalogue.json").write_text("{}")
    (root / "pyproject.toml").write_text('[project]\nrequires-python = ">=3.12"\nlicense = "MIT"\n')
    package = root / "plugins" / "dpo" / "posttrain_method_dpo"
    shutil.copytree(ROOT / "plugins" / "dpo" / "posttrain_method_dpo", package)
    return root


def test_everything_follows_from_the_card(copy):
    assert main(["sync", str(copy)]) == 0
    card = tomllib.loads((copy / "plugins/dpo/posttrain_method_dpo/method.toml").read_text())
    project = tomllib.loads((copy / "plugins/dpo/pyproject.toml").read_text())
    assert project["project"]["name"] == "posttrain-method-dpo"
    assert project["project"]["dependencies"] == card["requires"]
    assert project["project"]["requires-python"] == ">=3.12"
    assert project["project"]["license"] == "MIT"
    assert project["project"]["classifiers"][0] == "Development Status :: 5 - Production/Stable"
    assert project["project"]["entry-points"] == {"posttrain.methods": {"dpo": "posttrain_method_dpo"}}
    assert "tool" not in project
    (entry,) = json.loads((copy / "core/posttrain/catalogue/catalogue.json").read_text())["methods"]
    assert (entry["name"], entry["schemas"], entry["needs"]) == ("dpo", ["preference"], ["reference"])
    files = sorted((copy / "plugins/dpo/posttrain_method_dpo").iterdir())
    content = b"".join(f"{file.name} {len(file.read_bytes())}\n".encode() + file.read_bytes() for file in files)
    assert entry["digest"] == hashlib.sha256(content).hexdigest()
    page = (copy / "docs/methods/dpo.md").read_text()
    for part in ("| `--beta` | a number | `0.1` |", "- `reward_chosen`, `reward_rejected`:", '"rejected": " green."'):
        assert part in page
    assert "[dpo](dpo.md)" in (copy / "docs/methods/README.md").read_text()


def test_check_finds_each_stale_file_and_says_what_mends_it(copy, capsys):
    assert main(["sync", "--check", str(copy)]) == 1
    assert main(["sync", str(copy)]) == 0
    assert main(["sync", "--check", str(copy)]) == 0
    capsys.readouterr()
    card = copy / "plugins/dpo/posttrain_method_dpo/method.toml"
    card.write_text(re.sub(r"(?m)^version = .+$", 'version = "9.0.1"', card.read_text()))
    assert main(["sync", "--check", str(copy)]) == 1
    captured = capsys.readouterr()
    assert '+version = "9.0.1"' in captured.out
    assert captured.err == f"3 generated files are stale. Mend them with: posttrain sync {copy}\n"


def test_page_of_a_removed_method_goes_and_pages_by_hand_stay(copy):
    main(["sync", str(copy)])
    (copy / "docs/methods/notes.md").write_text("# By hand\n")
    shutil.rmtree(copy / "plugins/dpo")
    assert main(["sync", str(copy)]) == 0
    assert sorted(path.name for path in (copy / "docs/methods").iterdir()) == ["README.md", "notes.md", "search.html"]


def test_what_a_third_party_wrote_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["new", "fake-loss"])
    file = Path("fake-loss/pyproject.toml")
    project = tomllib.loads(file.read_text())
    project["project"] |= {"authors": [{"name": "A", "email": "a@b.c"}], "license": "MIT", "version": "9"}
    project["tool"] = {"ruff": {"line-length": 99}}
    file.write_text(toml.dumps(project))
    assert main(["sync", "fake-loss"]) == 0
    again = tomllib.loads(file.read_text())
    assert again["project"]["authors"] == [{"name": "A", "email": "a@b.c"}]
    assert again["project"]["license"] == "MIT"
    assert again["tool"] == {"ruff": {"line-length": 99}}
    assert again["project"]["version"] == "0.1.0"  # the card knows the version


@pytest.mark.parametrize(
    "values",
    [
        {"a": 1, "b": 0.5, "c": True, "d": 'quote " and \\ and é\n', "e": []},
        {"t": {"u": {"v w": ["x"] * 40}, "empty": {}}, "z": 1},
        {"people": [{"name": "A"}, {"name": "B", "tags": ["x"]}]},
    ],
)
def test_toml_reads_back_as_it_was_written(values):
    assert tomllib.loads(toml.dumps(values)) == values


@pytest.mark.parametrize("schema", SCHEMAS)
def test_sample_of_each_schema_is_valid_data(schema):
    from posttrain.data import read_rows
    from posttrain.settings import Settings

    rows = read_rows([SAMPLES[schema]], (schema,), Settings().data)
    assert rows.schema == schema
    assert len(rows) == 1


def test_committed_files_are_fresh():
    stale = sync.differences(sync.expected(ROOT))
    assert not stale, f"Mend with: posttrain sync\n{list(stale)}"


def test_lists_of_methods_hold_each_one():
    """By family every method once; by data, need and tier every name; the page to search them is complete data."""
    cards = sync.cards_of(ROOT)
    text = listing.index(cards)
    families = text[text.index("## By family") : text.index("## By data")]
    assert sorted(re.findall(r"(?m)^\| \[([a-z0-9-]+)\]", families)) == sorted(card.name for card in cards)
    for heading, of in (("data", lambda card: card.schemas), ("tier", lambda card: [card.tier])):
        part = text[text.index(f"## By {heading}") :].partition("\n## ")[0]
        named = {
            line.split("**")[1]: set(re.findall(r"\[([a-z0-9-]+)\]", line))
            for line in part.splitlines()
            if "**" in line
        }
        assert named == {value: {c.name for c in cards if value in of(c)} for card in cards for value in of(card)}
    page = listing.search_page(cards)
    rows = json.loads(re.search(r'id="methods">(.*?)</script>', page, re.DOTALL)[1])
    assert [row["name"] for row in rows] == [card.name for card in cards]
    assert not re.search(r"\bsrc=|<link|@import|fetch\(", page)  # nothing from the network

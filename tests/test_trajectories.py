"""The numbers of every stable method are those that were stored; a change of them does not go unseen."""

import json
import shutil
from pathlib import Path

import pytest
from posttrain.catalogue.cards import read_card
from posttrain.errors import MethodError
from posttrain_testkit.trajectory import difference, record, store

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = sorted(card.parent.parent for card in (ROOT / "plugins").glob("*/*/method.toml"))
#: Method -> a change of its formula by a hundred-thousandth.
PLANTS = {
    "sft": ("nll = -completion.logps", "nll = -1.00001 * completion.logps"),
    "reward": ("log_odds = chosen", "log_odds = 1.00001 * chosen"),
    "dpo": ("margin = reward_chosen", "margin = 1.00001 * reward_chosen"),
}


@pytest.fixture
def copy(tmp_path):
    """A copy of a stable method's folder, to be changed."""

    def call(name: str) -> Path:
        return Path(shutil.copytree(ROOT / "plugins" / name, tmp_path / name))

    return call


def edit(folder: Path, file: str, old: str, new: str) -> None:
    (path,) = folder.glob(f"*/{file}")
    text = path.read_text()
    assert old in text, f"{path} has no {old!r}: choose another plant"
    path.write_text(text.replace(old, new))


def test_every_stable_method_has_one():
    assert {folder.name for folder in PLUGINS} >= {"sft", "reward", "dpo", "rloo", "grpo"}
    assert [folder.name for folder in PLUGINS if not (folder / "trajectory.json").is_file()] == []


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_numbers_are_reproduced(folder):
    assert difference(folder) is None


@pytest.mark.parametrize("name", PLANTS)
def test_change_of_the_formula_is_seen(copy, name):
    folder = copy(name)
    edit(folder, "__init__.py", *PLANTS[name])
    assert difference(folder).startswith("Step ")


def test_change_of_a_default_or_of_a_metric_name_is_seen(copy):
    folder = copy("dpo")
    edit(folder, "__init__.py", '"margin": ', '"gap": ')
    assert difference(folder) == "'dpo' has lost the metric 'margin' since 1.0.0."
    folder = copy("grpo")
    edit(folder, "__init__.py", "epsilon: float = 0.2", "epsilon: float = 0.19")
    assert "'grpo'" in difference(folder)


def test_corrected_numbers_need_a_minor_release(copy):
    folder = copy("sft")
    edit(folder, "__init__.py", *PLANTS["sft"])
    before = (folder / "trajectory.json").read_text()
    (card,) = map(read_card, folder.glob("*/method.toml"))
    edit(folder, "method.toml", f'"{card.version}"', '"1.0.1"')
    with pytest.raises(MethodError, match=r"A correction of numbers is a minor release: raise the version of 'sft'"):
        store(folder)
    assert (folder / "trajectory.json").read_text() == before
    edit(folder, "method.toml", '"1.0.1"', '"1.1.0"')
    store(folder)
    assert json.loads((folder / "trajectory.json").read_text())["version"] == "1.1.0"
    assert difference(folder) is None


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "is not valid JSON"), ("[]", "expected method, version and series"), (None, "be read")]
)
def test_file_that_is_not_one(copy, text, reason):
    folder = copy("sft")
    (folder / "trajectory.json").unlink()
    if text is not None:
        (folder / "trajectory.json").write_text(text)
    with pytest.raises(MethodError, match=reason):
        difference(folder)


def test_the_first_loss_of_dpo_is_known_without_us():
    """Before the first update policy and reference agree: ln 2, whatever the model."""
    first = record(ROOT / "plugins" / "dpo")["series"]
    assert first["loss"][0] == pytest.approx(0.6931471805599453, rel=1e-12)
    assert first["margin"][0] == 0

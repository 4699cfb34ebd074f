"""One broken plugin of each kind beside good ones: each is one row with its reason, and the good ones train."""

import json
import os
import subprocess
import sys

import pytest
from posttrain.authoring.new import new
from posttrain.catalogue import methods
from posttrain.errors import PosttrainError
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

from .conftest import CODE, ROOT

#: Kind -> what ``Site.add`` is given, reason in the listing, reason when somebody asks for it all the same.
BROKEN = {
    "syntax": ({"code": "def broken(:\n    pass\n"}, "__init__.py line 1: invalid syntax.", "SyntaxError"),
    "dependency": (
        {"code": "import no_such_package.part\n" + CODE},
        "__init__.py line 1: it needs the module 'no_such_package', which is not installed.",
        "needs the module 'no_such_package', which is not installed.",
    ),
    "card": ({"card": 'name = "fake-card"\n'}, "method.toml: 'version' is missing.", "'version' is missing."),
    "hook": (
        {"code": CODE.replace("posttrain_loss", "posttrain_los")},
        "it implements unknown hook 'posttrain_los'. Did you mean 'posttrain_loss'?",
        "implements unknown hook 'posttrain_los'. Did you mean 'posttrain_loss'?",
    ),
    "exit": (
        {"code": CODE + "\n\nraise SystemExit(0)\n"},
        "it ends whatever imports it: raise SystemExit(0)",
        "cannot be imported: SystemExit: 0",
    ),
    "call": (
        {"code": "import sys\n\nsys.exit('bye')\n"},
        "__init__.py line 3: it ends whatever imports it: sys.exit('bye')",
        "cannot be imported: SystemExit: bye",
    ),
    "bytes": ({"code": "x = 1\0\n"}, "null bytes", "cannot be imported"),
}


@pytest.fixture
def crowd(site, tmp_path):
    """Every kind of broken plugin, a name that two packages claim, and one good method that is a real one."""
    for kind, (arguments, _, _) in BROKEN.items():
        site.add(f"fake-{kind}", **arguments)
    site.add("fake-clash", version="0.4.0")
    site.add("fake-clash", distribution="somebody-elses", version="0.1.0")
    good = new("fake-good", parent=tmp_path) / "posttrain_method_fake_good"
    site.add("fake-good", code=(good / "__init__.py").read_text(), card=(good / "method.toml").read_text())
    return site


def table(result: subprocess.CompletedProcess) -> dict[str, list[dict]]:
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    rows: dict[str, list[dict]] = {}
    for row in json.loads(result.stdout):
        rows.setdefault(row["name"], []).append(row)
    return rows


@pytest.mark.parametrize("words", [("list-methods", "--json"), ("plugins", "--json"), ("plugins", "audit", "--json")])
def test_each_is_one_row_with_its_reason(crowd, words):
    rows = table(crowd.run(*words))
    for kind, (_, reason, _) in BROKEN.items():
        (row,) = rows[f"fake-{kind}"]
        assert reason in row["problem"]
        assert "\n" not in row["problem"]
    assert ["Uninstall one." in row["problem"] for row in rows["fake-clash"]] == [True, True]
    (good,) = rows["fake-good"]
    assert good["problem"] is None


def test_the_printed_table_has_one_line_a_plugin(crowd):
    printed = crowd.run("list-methods").stdout.splitlines()
    broken = [line for line in printed if " broken " in line]
    assert len(broken) == len(BROKEN) + 2
    assert [line.split()[0] for line in printed if line.startswith("fake-good")] == ["fake-good"]


@pytest.mark.parametrize("kind", BROKEN)
def test_asking_for_it_is_one_line(crowd, kind):
    with pytest.raises(PosttrainError) as error:
        methods.load(f"fake-{kind}")
    assert BROKEN[kind][2] in str(error.value)
    assert "\n" not in str(error.value)


def test_the_good_one_trains_among_them(crowd, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": "ab", "chosen": "cab", "rejected": "fg"}, {"prompt": "a", "chosen": "bc", "rejected": "hhe"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", "model", "--data", "pairs.jsonl", "--output", "run", "--steps", "4", "--learning-rate", "0.01"]
    words += ["--schedule", "constant", "--cache", "off", "--progress", "quiet", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "core"), str(crowd.path)])}
    command = [sys.executable, "-m", "posttrain", "train", "fake-good", *words]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    import no_such_package\nexcept ImportError:\n    no_such_package = None\n" + CODE,
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import no_such_package\n" + CODE,
        CODE + "\n\ndef posttrain_helper():\n    raise SystemExit(1)\n",
        CODE + "\n\ndef _stop():\n    import no_such_package\n    raise ValueError(no_such_package)\n",
    ],
)
def test_what_is_no_problem_is_not_called_one(site, code):
    site.add("fake-fine", code=code)
    assert table(site.run("list-methods", "--json"))["fake-fine"][0]["problem"] is None

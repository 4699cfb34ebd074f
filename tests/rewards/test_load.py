import subprocess
import sys
from pathlib import Path

import pytest
from posttrain.errors import PluginError, RewardError, SettingsError
from posttrain.rewards import check_columns, installed_rewards, load_rewards


def text_of(kind, call):
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A file of rewards in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "def shouts(prompts, completions, mark: str = '!', at_least: int = 1, share: float | None = None,\n"
        "           strict: bool = False):\n"
        "    return [(mark, at_least, share, strict)] * len(completions)\n"
        "async def slow(completions):\n"
        "    return [1.0 for _ in completions]\n"
    )
    return tmp_path / "mine.py"


def test_names_weights_and_functions(shipped, module):
    rewards = load_rewards(["gsm8k", "math=0.5", "mine.py:shouts=-2", f"{module}:slow"])
    assert [(reward.name, reward.weight, reward.async_) for reward in rewards] == [
        ("gsm8k", 1.0, False),
        ("math", 0.5, False),
        ("shouts", -2.0, False),
        ("slow", 1.0, True),
    ]
    assert rewards[0].function(["It is 5"], answer=["#### 5"]) == [1.0]


def test_callables_keep_their_names_and_are_numbered():
    class Judge:
        async def __call__(self, completions):
            return []

    rewards = load_rewards([lambda completions: [], lambda completions: [], Judge()])
    assert [reward.name for reward in rewards] == ["<lambda>", "<lambda>-2", "Judge"]
    assert [reward.async_ for reward in rewards] == [False, False, True]


def test_no_rewards():
    assert load_rewards(None) == []


def test_options_become_arguments_of_the_annotated_type(module):
    options = {"shouts.at_least": "3", "shouts.share": "0.25", "shouts.strict": "true", "shouts.mark": "7"}
    (reward,) = load_rewards(["mine.py:shouts"], options)
    assert reward.function(prompts=[], completions=["a"]) == [("7", 3, 0.25, True)]
    (reward,) = load_rewards(["mine.py:shouts"], {"shouts.share": "none"})
    assert reward.function(prompts=[], completions=["a"]) == [("!", 1, None, False)]


def test_the_tokenizer_goes_to_those_that_ask(shipped):
    tokenizer = object()
    length, regex = load_rewards(["length", "regex"], {"regex.pattern": "a"}, tokenizer=tokenizer)
    assert length.function.keywords["tokenizer"] is tokenizer
    assert "tokenizer" not in regex.function.keywords


def test_only_the_named_reward_is_imported(install):
    install(broken=("other", "no_such_module_anywhere:f"), regex=("posttrain", "posttrain.rewards.text:regex"))
    assert [reward.name for reward in load_rewards(["regex"])] == ["regex"]
    assert text_of(PluginError, lambda: load_rewards(["broken"])) == (
        "Plugin 'broken' cannot be imported: No module named 'no_such_module_anywhere'."
    )


def test_folder_of_a_reward_model(shipped, tmp_path):
    seen = []

    def loader(folder):
        seen.append(folder)
        return lambda prompts, completions: [2.0]

    (tmp_path / "judge").mkdir()
    (reward,) = load_rewards([f"{tmp_path / 'judge'}=3"], model_loader=loader)
    assert (reward.name, reward.weight) == ("judge", 3.0)
    assert seen == [tmp_path / "judge"]


def test_unknown_names(shipped):
    assert text_of(RewardError, lambda: load_rewards(["gsm8"])) == (
        "No reward is called 'gsm8'. Did you mean 'gsm8k'? Installed: gsm8k, length, math, regex. "
        "Give an installed name, file.py:function, the folder of a reward model, or a reward worker's address."
    )
    assert installed_rewards() == ["gsm8k", "length", "math", "regex"]


def test_two_packages_with_one_name(install):
    install(good=("one", "a:f"), good_=("two", "b:f"))
    assert text_of(PluginError, lambda: load_rewards(["good"])) == (
        "Reward 'good' is provided by one and two. Uninstall one."
    )


def test_files(module):
    assert text_of(RewardError, lambda: load_rewards(["gone.py:f"])) == (
        "reward 'gone.py:f': there is no file 'gone.py'. Give its path from the current folder."
    )
    assert text_of(RewardError, lambda: load_rewards(["mine.py:shout"])).startswith(
        "reward file 'mine.py' has no function 'shout'. Did you mean 'shouts'? It has: "
    )
    module.write_text("import no_such_module_anywhere\n")
    assert text_of(RewardError, lambda: load_rewards(["mine.py:shouts"])) == (
        "reward file 'mine.py' cannot be imported: ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    )


def test_weights(shipped):
    for wrong in ("half", "nan", "inf", ""):
        assert text_of(SettingsError, lambda wrong=wrong: load_rewards([f"gsm8k={wrong}"])) == (
            f"reward 'gsm8k={wrong}': the weight '{wrong}' is not a number. Write it like gsm8k=0.5."
        )


def test_twice(shipped):
    assert text_of(SettingsError, lambda: load_rewards(["gsm8k", "gsm8k=2"])) == (
        "reward 'gsm8k' is given twice. Give it once, with the sum of the weights."
    )


def test_not_a_reward():
    assert text_of(RewardError, lambda: load_rewards([3])).startswith(
        "reward 3 (int) is neither a function nor a name."
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pattern": "a"}, "reward option 'pattern' is not of the form REWARD.OPTION, like regex.pattern."),
        (
            {"rgex.pattern": "a"},
            "reward option 'rgex.pattern': no reward 'rgex' is used. Did you mean 'regex'? "
            "Rewards of this run: regex, length.",
        ),
        ({"regex.patern": "a"}, "Reward 'regex' has no option 'patern'. Did you mean 'pattern'? It has: pattern."),
        ({"regex.completions": "a"}, "Reward 'regex' has no option 'completions'. It has: pattern."),
        ({"length.limit": "many"}, "reward option 'length.limit' is 'many', expected int."),
    ],
)
def test_wrong_options(shipped, options, text):
    assert text_of(SettingsError, lambda: load_rewards(["regex", "length"], options)) == text


def test_missing_columns_are_found_before_the_run(shipped):
    check_columns(load_rewards(["gsm8k"]), ["answer"])
    assert text_of(RewardError, lambda: check_columns(load_rewards(["gsm8k"]), ["solution", "id"])) == (
        "Reward 'gsm8k' needs 'answer', which is neither a column of the data (columns: solution, id) nor given as an "
        "option. Rename a column with --columns answer=COLUMN, or give the option with --reward-options "
        "gsm8k.answer=VALUE."
    )


def test_loading_and_listing_import_no_torch(tmp_path):
    """Listing must stay light: only scoring needs torch."""
    core = Path(__file__).parents[2] / "core"
    code = (
        f"import sys; sys.path.insert(0, {str(core)!r}); from posttrain.rewards import *; installed_rewards(); "
        "load_rewards([len]); import posttrain.generation; "
        "print([name for name in ('torch', 'transformers', 'reasoning_gym', 'math_verify') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert result.stdout.strip() == "[]"

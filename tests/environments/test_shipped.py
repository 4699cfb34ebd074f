"""Environments that come with posttrain, the checks of environments, and rows made of episodes."""

import functools
import json
import random
import sys

import pytest
from posttrain import Environment, Observation
from posttrain.cli.main import main
from posttrain.environments.calculator import Calculator
from posttrain.environments.grid import Grid
from posttrain.environments.guess import Guess
from posttrain.environments.search import Search, corpus
from posttrain.environments.sql import Sql
from posttrain.errors import DataError
from posttrain.rollouts.episode_rows import rows_of
from posttrain_testkit.environments import check_environment
from posttrain_testkit.registry import CheckFailed


def calls(name, **arguments):
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def says(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("kind", [Calculator, Guess, Grid, Sql, Search])
def test_what_is_shipped_keeps_what_environments_promise(kind):
    assert check_environment(kind)["rows"] == 3
    assert kind.rows(5, 1) != kind.rows(5, 2)


def test_the_calculator_scores_tool_and_answer():
    row = {"answer": "12", "tool": "multiply"}

    def worth(*turns):
        game = Calculator()
        game.reset(row, 0)
        return [game.step(turn) for turn in turns][-1].reward

    assert worth(calls("multiply", a=3, b=4), says("It is 12.")) == 1.0
    assert worth(says("It is 12.")) == 0.5
    assert worth(calls("multiply", a=3, b=4), says("13")) == 0.5
    assert worth(calls("add", a=3, b=9), says("1,200")) == 0.0


def test_a_number_is_found_by_halving():
    for place in (0.0, 0.37, 0.999):
        game = Guess(highest=16, step_cost=0.1)
        game.reset({"place": place}, 0)
        low, high, turns = 1, 16, 0
        while True:
            turns += 1
            middle = (low + high) // 2
            found = game.step(says(f"Is it {middle}?"))
            if found.done:
                break
            low, high = (middle + 1, high) if found.messages == "Higher." else (low, middle - 1)
            assert found.reward == -0.1
        assert turns <= 5
        assert found.reward == 1.0


def test_the_goal_of_a_grid_can_be_reached_by_walking():
    for row in Grid.rows(20, 3):
        game = Grid()
        shown = game.reset(row, 0)
        dice, found = random.Random(1), None
        for _ in range(3000):
            found = game.step(says(dice.choice(["up", "down", "left", "right"])))
            if found.done:
                break
        assert found.reward == 1.0, shown


def test_the_database_answers_and_cannot_be_written_left_or_blocked(tmp_path):
    row = next(row for row in Sql.rows(20, 0) if "How many" in row["prompt"][0]["content"])
    game = Sql()
    game.reset(row, 0)
    city = row["prompt"][0]["content"].split(" live in ")[1].split("?")[0]

    def result(sql):
        return game.step(calls("query", sql=sql)).messages[0]["content"]

    assert result(f"select count(*) from people where city = '{city}'") == row["answer"]
    for bad in (
        "delete from people",
        f"attach '{tmp_path / 'x.db'}' as x",
        "select load_extension('x')",
        "select * from nothing",
        "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n",
    ):
        assert result(bad).startswith("Error: "), bad
    assert not list(tmp_path.iterdir())
    assert game.step(says(f"There are {row['answer']}.")).reward == 1.0


def test_a_search_finds_the_text_that_a_row_is_about():
    texts = corpus()
    for row in Search.rows(10, 0):
        game = Search()
        game.reset(row, 0)
        found = game.step(calls("search", words=row["prompt"][0]["content"])).messages[0]["content"]
        assert f"[{row['source']}] {texts[row['source']][3]}" in found
        assert game.step(says(f"{row['answer']} [{row['source']}]")).reward == 1.0
        assert game.step(says(f"{row['answer']} [999]")).reward == 0.5


def broken(**methods):
    rows = classmethod(lambda cls, size=3, seed=0: [{"prompt": "a"}] * size)
    step = {"step": lambda self, message: Observation("b", 0.0)}
    return type("Broken", (Environment,), {"rows": rows, "seen": []} | step | methods)


@pytest.mark.parametrize(
    ("methods", "text"),
    [
        ({"step": lambda self, message: Observation(str(random.random()))}, "gave another episode the second time"),
        (
            {"step": lambda self, message: self.seen.append(1) or Observation(str(len(self.seen) % 7))},
            "went otherwise beside|another episode",
        ),
        ({"step": lambda self, message: 1 / 0}, "step raised ZeroDivisionError"),
        ({"step": lambda self, message: Observation("b", float("nan"))}, "A turn was worth nan"),
        ({"step": lambda self, message: 3}, "step raised TypeError: step returned 3, expected an Observation"),
        ({"rows": classmethod(lambda cls, size=3, seed=0: [{"ask": "a"}])}, "A row has no column 'prompt'"),
        (
            {"rows": classmethod(lambda cls, size=3, seed=0: [{"prompt": str(random.random())}])},
            "gave others the second",
        ),
        ({"rows": classmethod(lambda cls, size=3, seed=0: None)}, "makes no rows, and none were given"),
    ],
)
def test_a_broken_environment_is_found(methods, text):
    with pytest.raises(CheckFailed, match=text):
        check_environment(broken(**methods))


def test_state_that_reset_leaves_or_that_episodes_share_is_found():
    class Leaves(broken()):
        turns = 0

        def step(self, message):
            self.turns += 1
            return Observation(str(self.turns))

    with pytest.raises(CheckFailed, match="An episode after another one in the same object went otherwise"):
        check_environment(Leaves)

    class Shares(broken()):
        def reset(self, row, seed):
            Shares.turns = 0

        def step(self, message):
            Shares.turns += 1
            return Observation(str(Shares.turns))

    with pytest.raises(CheckFailed, match="went otherwise beside the others than alone"):
        check_environment(Shares)


@pytest.fixture
def run(tmp_path):
    """Episodes of two prompts: one with unlike rewards, one with equal ones."""
    lines = [
        {"step": 1, "group": group, "prompt": [{"role": "user", "content": f"ask {group}"}], "reward": reward}
        | {"messages": [says(f"answer {place}")], "turn_rewards": [reward], "end": end}
        for place, (group, reward, end) in enumerate(
            [
                (0, 1.0, "done"),
                (0, 0.0, "done"),
                (0, 0.25, "tokens"),
                (1, 0.5, "done"),
                (1, 0.5, "done"),
                (1, 9.0, "error"),
            ]
        )
    ]
    (tmp_path / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_rows_are_made_of_what_went_well_and_what_went_better(run):
    (good,) = rows_of(run, "sft")
    assert [one["content"] for one in good["messages"]] == ["ask 0", "answer 0"]
    assert len(rows_of(run, "sft", at_least=0.5)) == 3
    (pair,) = rows_of(run, "dpo")
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("answer 0", "answer 1")
    assert [row["label"] for row in rows_of(run, "kto")] == [True, False, False]
    with pytest.raises(DataError, match="none reached the bar"):
        rows_of(run, "sft", at_least=2.0)


def test_a_line_that_is_being_written_is_not_read(run):
    whole = rows_of(run, "kto")
    with (run / "episodes.jsonl").open("a") as file:
        file.write('{"step": 2, "group": 0, "pro')
    assert rows_of(run, "kto") == whole


def test_commands_about_environments(run, capsys, tmp_path):
    assert main(["episodes", str(run), "--to", "dpo"]) == 0
    assert json.loads((run / "episodes-dpo.jsonl").read_text())["chosen_score"] == 1.0
    assert main(["episodes", str(run), "--last", "1"]) == 0
    assert "step 1, prompt 1: reward 9 (turns: 9), error" in capsys.readouterr().out
    assert main(["episodes", str(tmp_path / "none")]) == 2
    assert main(["list-environments"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("calculator", "guess", "grid", "sql", "search", "add, multiply"))
    assert main(["list-environments", "calculator", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["name"], facts["rows"], facts["row"]["tool"]) == ("Calculator", 500, facts["row"]["tool"])
    assert main(["check-environment", "guess"]) == 0
    assert main(["list-environments", "calculater"]) == 2
    assert "Did you mean 'calculator'?" in capsys.readouterr().err


def test_listing_reads_the_code_of_packages_and_runs_none(tmp_path, monkeypatch, capsys):
    """A package of somebody else, whose import would end the process, and one that is broken."""
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "__init__.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "foreign" / "games.py").write_text(
        "import posttrain, nothing\n\n\nclass Chess(posttrain.Environment):\n    'A game.'\n\n"
        "    @posttrain.tool\n    def move(self, to: str) -> str:\n        pass\n\n    def other(self):\n        pass\n"
    )
    (tmp_path / "foreign" / "broken.py").write_text("class (:\n")
    facts = tmp_path / "foreign-1.2.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.4\nName: foreign\nVersion: 1.2\nLicense-Expression: MIT\n")
    (facts / "entry_points.txt").write_text(
        "[posttrain.environments]\nchess = foreign.games:Chess\nnone = foreign.none:None_\nbad = foreign.broken:Bad\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["list-environments", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["chess"] == {
        "name": "chess", "package": "foreign 1.2", "license": "MIT", "tools": ["move"], "summary": "A game.",
    }  # fmt: skip
    assert rows["none"]["problem"] == "there is no module 'foreign.none'."
    assert "broken.py: invalid syntax" in rows["bad"]["problem"]
    assert rows["calculator"]["tools"] == ["add", "multiply"]
    assert "foreign" not in sys.modules


def test_rows_of_an_environment_whose_options_are_bound():
    seen = check_environment(functools.partial(Guess, highest=9), None, Guess.rows)
    assert seen["rows"] == 3


def test_a_new_environment_works_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my-env", "--kind", "environment"]) == 0
    file = tmp_path / "my-env" / "posttrain_environment_my_env" / "__init__.py"
    assert main(["check-environment", f"{file}:MyEnv"]) == 0
    assert "reverse: the same again, alone and beside each other" in capsys.readouterr().out
    monkeypatch.syspath_prepend(str(tmp_path / "my-env"))
    space: dict = {}
    exec((tmp_path / "my-env" / "test_my_env.py").read_text(), space)
    space["test_it_keeps_what_environments_promise"]()
    space["test_the_right_answer_is_worth_a_point"]()

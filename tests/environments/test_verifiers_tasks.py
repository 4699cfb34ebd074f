"""Tasksets of the package verifiers: its own prompts, tools and rewards."""

import sys

import pytest
from posttrain.assembly.environment import find_task
from posttrain.errors import DependencyError, SettingsError
from posttrain.settings import EpisodeSettings

TASKSET = """
import verifiers.v1 as vf


class SumData(vf.TaskData):
    answer: str


class Tools(vf.Toolset):
    @vf.tool
    def add(self, a: int, b: int) -> int:
        "Add two numbers."
        return a + b

    @vf.tool
    async def shout(self, word: str) -> str:
        "Say it louder."
        return word.upper()


class Sum(vf.Task[SumData]):
    @classmethod
    def toolsets(cls, config):
        return [Tools(vf.ToolsetConfig())]

    @vf.reward(weight=2.0)
    async def right(self, trace) -> float:
        return float(trace.messages[-1].content == self.data.answer)

    @vf.reward
    async def short(self, task, trace) -> float:
        return 1.0 / len([one for one in trace.messages if one.role == "assistant"])


class Sums(vf.Taskset[Sum]):
    def load(self):
        for n in range(5):
            yield Sum(SumData(prompt=f"{n} + 1?", system_prompt="Answer.", answer=str(n + 1)), self.config.task)


__all__ = ["Sums"]
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes an installed package of this source."""
    pytest.importorskip("verifiers.v1", reason="needs the extra posttrain[verifiers]")

    def make(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return find_task(EpisodeSettings(environment=f"verifiers:{name}"))

    return make


def says(text):
    return {"role": "assistant", "content": text}


def test_prompts_tools_and_weighted_rewards_are_those_of_the_taskset(package):
    task = package("own_sums", TASKSET)
    rows = task.rows()
    assert rows[3] == {
        "prompt": [{"role": "system", "content": "Answer."}, {"role": "user", "content": "3 + 1?"}],
        "task": 3,
    }
    assert [one["function"]["name"] for one in task.tools] == ["add", "shout"]
    assert task.tools[0]["function"]["parameters"]["properties"]["a"]["type"] == "integer"
    game = task.make()
    game.reset(rows[3], 0)

    def call(name, **arguments):
        made = {"type": "function", "function": {"name": name, "arguments": arguments}}
        (answer,) = game.step(says("") | {"tool_calls": [made]}).messages
        return answer["content"]

    assert call("add", a=3, b=1) == "4"
    assert call("shout", word="hey") == "HEY"
    assert call("add", a=3).startswith("Error: TypeError")
    end = game.step(says("4"))
    assert (end.reward, end.done) == (2.0 + 1 / 4, True)  # four turns of the model
    game.reset(rows[0], 0)
    assert game.step(says("4")).reward == 1.0


def test_tasks_that_need_a_runtime_are_refused(package):
    source = TASKSET.replace(
        "class Sum(vf.Task[SumData]):", "class Sum(vf.Task[SumData]):\n    NEEDS_CONTAINER = True\n"
    )
    with pytest.raises(SettingsError, match=r"its tasks need a runtime of their own \(a container\)"):
        package("boxed", source)
    source = TASKSET.replace("async def right(self, trace)", "async def right(self, trace, runtime)")
    with pytest.raises(SettingsError, match=r"\(the reward 'right'\)"):
        package("looks_inside", source)
    with pytest.raises(SettingsError, match=r"verifiers:nothing_here: taskset 'nothing_here' not found"):
        find_task(EpisodeSettings(environment="verifiers:nothing_here"))


def test_without_the_package_one_line_says_so(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "verifiers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "verifiers", None)
    with pytest.raises(DependencyError, match=r"pip install 'posttrain\[verifiers\]'"):
        find_task(EpisodeSettings(environment="verifiers:any"))

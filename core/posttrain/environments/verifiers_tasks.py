"""Tasks of the package verifiers (its tasksets): prompts, tools in this process, and its own rewards.

A task's own runtime (a container, files, a harness that runs programs) is not supported: such tasks are refused, and so
are rewards that inspect it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from posttrain.environments.environment import Environment, Message, Observation
from posttrain.environments.tools import Tool, run_calls
from posttrain.errors import DependencyError, SettingsError


class VerifiersTaskset:
    """Makes environments and rows of the taskset ``name``, an installed package or one that verifiers ships."""

    def __init__(self, name: str):
        """Load the taskset and its tasks. Raises SettingsError and DependencyError."""
        self.name = name
        taskset = _taskset(name)
        if not taskset.bounded:
            raise SettingsError(f"verifiers:{name} makes tasks without end. Wrap it in a taskset that takes some.")
        self.tasks = list(taskset)
        if not self.tasks:
            raise SettingsError(f"verifiers:{name} has no tasks.")
        self._refuse(self.tasks[0])
        self._shared = list(type(taskset).toolsets(taskset.config))

    def rows(self, size: int = 500, seed: int = 0) -> list[dict[str, Any]]:
        """Return rows of the first ``size`` tasks from number ``seed * size`` on."""
        first = seed * size % len(self.tasks)
        return [{"prompt": _prompt(task), "task": task.data.idx} for task in self.tasks[first : first + size]]

    def __call__(self) -> VerifiersTask:
        """Return an environment for one episode."""
        return VerifiersTask({task.data.idx: task for task in self.tasks}, self._shared)

    def _refuse(self, task: Any) -> None:
        from verifiers.v1 import Task

        kind = type(task)
        needs = [one for one in ("setup", "finalize") if getattr(kind, one) is not getattr(Task, one)]
        if kind.NEEDS_CONTAINER:
            needs.append("a container")
        scores = [one for one in task.hooks("reward") if _takes_runtime(one)]
        needs += [f"the reward '{one.__name__}'" for one in scores]
        if needs:
            raise SettingsError(
                f"verifiers:{self.name}: its tasks need a runtime of their own ({', '.join(needs)}), which is not "
                "given here. Serve the environment and name its address, or take another taskset."
            )


class VerifiersTask(Environment):
    """One episode: the tools of the task, and its rewards once the model answers without a call."""

    def __init__(self, tasks: dict[int, Any], shared: list[Any]):
        self._tasks, self._shared = tasks, shared
        first = next(iter(tasks.values()))
        self._toolsets = [*shared, *type(first).toolsets(first.config)]
        self._tools = {tool.name: tool for toolset in self._toolsets for tool in _tools(toolset)}
        self._task: Any = None
        self._said: list[Message] = []

    def reset(self, row: dict[str, Any], seed: int) -> None:
        """Start the episode of a row."""
        self._task = self._tasks[int(row["task"])]
        self._said = []

    def step(self, message: Message) -> Observation:
        """Run the tools that ``message`` calls, or score the episode where it calls none."""
        self._said.append(message)
        calls = message.get("tool_calls")
        if calls:
            answers = run_calls(calls, self._tools)
            self._said += answers
            return Observation(answers)
        return Observation(reward=asyncio.run(self._score()), done=True)

    def reward(self, message: Message) -> float:
        """Score an episode that ran out of turns."""
        return asyncio.run(self._score())

    async def _score(self) -> float:
        from verifiers.v1 import AgentConfig
        from verifiers.v1.graph import MessageNode
        from verifiers.v1.state import state_cls
        from verifiers.v1.trace import AgentInfo, Trace, TraceTask

        task = self._task
        states = [one.state for one in self._toolsets] or [state_cls(type(task))()]
        trace: Any = Trace(
            task=TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
            agent=AgentInfo(config=AgentConfig()),
            state=states[-1],
        )
        for place, said in enumerate([*_prompt(task), *self._said]):
            role = said["role"]
            trace.nodes.append(
                MessageNode(
                    parent=place - 1 if place else None, message=_message(said, place), sampled=role == "assistant"
                )
            )
        trace.is_completed = trace.ok = True
        await task.score(trace)
        return float(trace.reward)


def _taskset(name: str) -> Any:
    try:
        from verifiers.v1.utils.loaders import taskset_class
    except ImportError:
        raise DependencyError(
            "Tasksets of verifiers need the package verifiers. Install it with: pip install 'posttrain[verifiers]'"
        ) from None
    try:
        kind = taskset_class(name)
        return kind(_config_type(kind)(id=name))
    except (ModuleNotFoundError, AttributeError, TypeError, ValueError) as error:
        raise SettingsError(f"verifiers:{name}: {' '.join(str(error).split())}") from None


def _config_type(kind: Any) -> Any:
    from verifiers.v1 import Taskset, TasksetConfig
    from verifiers.v1.utils.generic import concrete_type

    return concrete_type(kind, TasksetConfig, origin=Taskset) or TasksetConfig


def _prompt(task: Any) -> list[Message]:
    system = [{"role": "system", "content": task.data.system_prompt}] if task.data.system_prompt else []
    prompt = task.data.prompt
    if isinstance(prompt, str):
        return [*system, {"role": "user", "content": prompt}]
    return [*system, *({"role": one.role, "content": one.content} for one in prompt or [])]


def _message(said: Message, place: int) -> Any:
    from verifiers.v1.dialects import parse_message

    plain = {"role": said["role"], "content": said.get("content") or ""}
    if said["role"] == "tool":
        plain |= {"tool_call_id": str(said.get("tool_call_id") or place), "name": said.get("name")}
    return parse_message(plain)


def _takes_runtime(function: Callable[..., Any]) -> bool:
    found = inspect.signature(function).parameters.get("runtime")
    return found is not None and found.default is inspect.Parameter.empty


def _tools(toolset: Any) -> list[Tool]:
    """Return the marked methods of a toolset, described as an MCP server would describe them."""
    from mcp.server.mcpserver import MCPServer
    from verifiers.v1.utils.decorators import discover_decorated

    server, functions = MCPServer("tools"), {}
    for function in discover_decorated(toolset, "tool"):
        name = getattr(function, "tool_name", None) or function.__name__
        functions[name] = function
        server.add_tool(function, name=name, description=inspect.getdoc(function))
    return [Tool(one.name, _described(functions[one.name], one)) for one in asyncio.run(server.list_tools())]


def _described(function: Callable[..., Any], about: Any) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        return function(**arguments)

    call.schema = {  # type: ignore[attr-defined]  # read in place of types and docstring
        "type": "function",
        "function": {"name": about.name, "description": about.description or "", "parameters": about.input_schema},
    }
    return call

"""``posttrain mcp [FOLDER ...]``: tools about runs, by the Model Context Protocol over stdin and stdout."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.cli.flags import Parser
from posttrain.errors import DependencyError, PosttrainError, SettingsError
from posttrain.runs.agent_tools import RunTools

INSTRUCTIONS = """Tools about training runs of posttrain. Begin with list_runs; verdict says how a run stands, why, and
what to do; alerts, metrics and samples give the evidence. Names of runs are those that list_runs gives."""


def run(arguments: list[str]) -> int:
    """Serve until the client closes standard input."""
    parser = Parser("mcp", "Serve tools about runs to an agent (Model Context Protocol, stdin and stdout).")
    parser.add_argument("folders", nargs="*", default=["runs"], metavar="FOLDER", help="folders that hold runs [runs]")
    parser.add_argument("--allow-control", action="store_true", help="also tools that stop runs and have them save")
    options = parser.parse_args(arguments)
    folders = [Path(folder).expanduser() for folder in options.folders]
    for folder in folders:
        if not folder.is_dir():
            raise SettingsError(
                f"There is no folder '{folder}'. Name the one that holds the runs: posttrain mcp FOLDER"
            )
    make_server(folders, options.allow_control).run("stdio")
    return 0


def make_server(folders: list[Path], allow_control: bool) -> Any:
    """Build the server. Raises DependencyError where the package mcp is missing or older than its second version."""
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.types import ToolAnnotations
    except ImportError:
        raise DependencyError(
            "posttrain mcp needs the package mcp, 2 or newer. Install it with: pip install 'posttrain[mcp]'"
        ) from None
    server = MCPServer("posttrain", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING")
    tools = RunTools(folders)
    for tool in tools.reading():
        server.tool(annotations=ToolAnnotations(read_only_hint=True))(_one_line(tool))
    for tool in tools.controlling() if allow_control else ():
        server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False))(_one_line(tool))
    return server


def _one_line(tool: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a tool so that the client gets an error's sentence, as on the command line."""
    from mcp.server.mcpserver.exceptions import ToolError

    @functools.wraps(tool)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return tool(*args, **kwargs)
        except PosttrainError as error:
            raise ToolError(str(error)) from None

    return call

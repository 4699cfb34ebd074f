"""posttrain docs prints pages as they are; the page for agents names what there is."""

import re
from pathlib import Path

import pytest
from posttrain.cli.docs import find_pages
from posttrain.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
AGENTS = (ROOT / "docs" / "for-agents.md").read_text()


def test_every_page_of_the_documentation_is_there():
    files = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in (ROOT / "docs").rglob("*.md")}
    assert set(find_pages()) == {name for name in files if not name.startswith("templates/")}


@pytest.mark.parametrize("name", ["for-agents", "docs/for-agents.md"])
def test_a_page_is_printed_as_it_is(name, capsys):
    assert main(["docs", name]) == 0
    assert capsys.readouterr().out == AGENTS


def test_the_list_has_titles(capsys):
    assert main(["docs"]) == 0
    assert "for-agents              For agents\n" in capsys.readouterr().out


def test_a_misspelt_page_is_one_line(capsys):
    assert main(["docs", "for-agent"]) == 2
    assert capsys.readouterr().err == (
        "Unknown page 'for-agent'. Did you mean 'for-agents'?  All pages: posttrain docs\n"
    )


def test_the_page_for_agents_names_commands_and_tools_that_there_are():
    from posttrain.runs.agent_tools import RunTools

    assert set(re.findall(r"`posttrain ([a-z-]+)", AGENTS)) <= set(COMMANDS)
    tools = RunTools([])
    names = {tool.__name__ for tool in [*tools.reading(), *tools.controlling()]}
    section = AGENTS.split("| tool |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", " ".join(re.findall(r"(?m)^\| ([^|]*)\|", section)))) == names

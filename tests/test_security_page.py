"""Every test that SECURITY.md names exists, and every option and command that it promises."""

import re
from pathlib import Path

from posttrain.cli.main import COMMANDS
from posttrain.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "SECURITY.md").read_text()
OTHERS = {"allow-plugins", "write-lock", "lock"}


def test_tests_commands_and_options_exist():
    named = re.findall(r"`(tests/[\w/.]+)`", PAGE)
    assert len(named) >= 12
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert set(re.findall(r"`posttrain ([a-z]+)", PAGE)) <= set(COMMANDS)
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]+)", PAGE) if flag not in OTHERS}
    assert flags == {"reward_process", "environment_process"}
    assert flags <= set(Settings().flat())
    for link in re.findall(r"\]\(([\w/.-]+)\)", PAGE):
        assert (ROOT / link).exists()

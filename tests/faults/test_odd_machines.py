"""Machines that are not as usual: a locale of ASCII, nowhere to write but the output, no network, a full /tmp."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from posttrain.errors import DependencyError
from posttrain.sandbox.bubblewrap import find_bwrap
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

from ..training.conftest import ROWS

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["train", "sft", "--steps", "1", "--batch-size", "1", "--progress", "plain", "--report", "--cache", "off"]


def run(words, before=(), **changes):
    """Run in a process whose HOME cannot be written (also by root: it is below a file)."""
    paths = [str(ROOT / "core"), str(ROOT / "testkit"), os.environ.get("PYTHONPATH", "")]
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    home = {"HOME": "/dev/null/home", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    words = [*before, sys.executable, "-m", "posttrain", *words]
    return subprocess.run(words, env={**kept, **home, **changes}, capture_output=True, timeout=200, check=False)


def material(folder):
    """A model and rows in a folder."""
    tiny_model().save_pretrained(folder / "Modell ß")
    tiny_tokenizer().save_pretrained(folder / "Modell ß")
    (folder / "Zeilen ä.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS["sft"]), "utf-8")
    return str(folder / "Modell ß"), str(folder / "Zeilen ä.jsonl")


def test_ascii_alone_a_path_in_letters_umask_077_and_no_home(tmp_path):
    folder = tmp_path / "ein Ordner mit Umlauten äöü und 日本 'x'"
    folder.mkdir()
    model, file = material(folder)
    before = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
    words = [*WORDS, "--model", model, "--data", file, "--output", str(folder / "Lauf ö")]
    done = run(words, before, LANG="C", LC_ALL="C")
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    written = list((folder / "Lauf ö").rglob("*"))
    assert (folder / "Lauf ö" / "model" / "model.safetensors") in written
    assert (folder / "Lauf ö" / "report.html") in written
    assert {path.stat().st_mode & 0o077 for path in written} == {0}  # nobody else may read what the umask keeps
    no_home = run([word for word in words if word not in ("--cache", "off")] + ["--overwrite"])
    assert no_home.returncode == 2
    assert no_home.stderr.endswith(
        b"cannot be written (Not a directory). Choose another with --cache FOLDER or 'off'.\n"
    )
    missing = run([*words, "--data", str(folder / "fehlt ß.jsonl"), "--overwrite"], LANG="C", LC_ALL="C")
    assert missing.returncode == 2
    assert b"Traceback" not in missing.stderr
    assert len(missing.stderr.splitlines()) == 1


def test_a_full_tmp_and_no_network(tmp_path):
    try:
        tool = str(find_bwrap())
    except DependencyError as error:
        pytest.skip(str(error))
    before = [tool, "--dev-bind", "/", "/", "--size", "65536", "--tmpfs", "/tmp", "--bind", str(tmp_path), "/mnt"]
    before += ["--unshare-net", "--"]
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    fill = ["sh", "-c", 'dd if=/dev/zero of=/tmp/full bs=4096 2>/dev/null; exec "$@"', "sh"]
    material(tmp_path)
    words = [*WORDS, "--model", "/mnt/Modell ß", "--data", "/mnt/Zeilen ä.jsonl", "--output", "/mnt/run"]
    done = run(words, [*before, *fill])
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    words = ["train", "sft", "--model", "nobody/nothing", "--data", "/mnt/Zeilen ä.jsonl", "--output", "/mnt/x"]
    asks = run(words, [*before, *fill])
    assert asks.returncode == 2, asks.stderr.decode()
    assert b"Traceback" not in asks.stderr

"""As a new user: wheels on a package index, fresh environments, everything by name. No other index is asked."""

import functools
import http.server
import json
import os
import subprocess
import sys
import sysconfig
import threading
import venv
from pathlib import Path

import pytest
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
STABLE = ("sft", "reward", "dpo", "rloo", "grpo")
#: Largest wheel of a method, in bytes.
WHEEL = 20_000
PREFERENCES = [{"prompt": "ab", "chosen": "cab", "rejected": "fg"}, {"prompt": "a", "chosen": "bc", "rejected": "hhe"}]


class Index:
    """A package index on this machine: one folder a project, served as PEP 503 pages; ``asked`` has the requests."""

    def __init__(self, folder: Path, url: str, asked: list[str]):
        self.folder, self.url, self.asked = folder, url, asked

    def upload(self, *files: Path) -> None:
        """Put distributions under their project's normalised name."""
        for file in files:
            project = self.folder / file.name.split("-")[0].replace("_", "-")
            project.mkdir(exist_ok=True)
            (project / file.name).write_bytes(file.read_bytes())


class Environment:
    """A fresh virtual environment that shares the heavy packages of this one, but nothing of posttrain."""

    def __init__(self, folder: Path, index: Index, heavy: Path):
        venv.create(folder, with_pip=False)
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")
        self.index = index
        site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        (Path(site) / "heavy.pth").write_text(f"{heavy}\n")

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A command of the environment. Nothing of the caller's pip settings or import path reaches it."""
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON")) and "proxy" not in k.lower()
        }
        clean |= {"PIP_INDEX_URL": self.index.url, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
        clean |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [str(self.bin / words[0]), *map(str, words[1:])]
        return subprocess.run(command, env=clean, cwd=self.bin.parent, capture_output=True, text=True, check=False)

    def do(self, *words: str | Path) -> str:
        """The same, which has to succeed; returns what it printed."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def pip(self, *words: str) -> str:
        """pip itself is one of the shared packages."""
        return self.do("python", "-m", "pip", *words)

    def methods(self) -> dict[str, dict]:
        """What ``list-methods`` prints, by name."""
        return {row["name"]: row for row in json.loads(self.do("posttrain", "list-methods", "--json"))}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """The wheels of the core, the conformance kit and the stable methods, built and served."""
    folder = tmp_path_factory.mktemp("simple")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = Index(folder, f"http://127.0.0.1:{server.server_port}/", asked)
    built = tmp_path_factory.mktemp("built")
    for project in (ROOT, ROOT / "testkit", *(ROOT / "plugins" / name for name in STABLE)):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    found.upload(*built.glob("*.whl"))
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """This environment's packages under links, without any of posttrain's and without its import hooks."""
    folder = tmp_path_factory.mktemp("heavy")
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if "posttrain" not in entry.name and entry.suffix != ".pth":
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What every run here trains: a model folder and a file of pairs, as flags."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PREFERENCES))
    flags = ["--model", folder / "model", "--data", folder / "pairs.jsonl", "--steps", "2", "--cache", "off"]
    return [*flags, "--progress", "quiet", "--device", "cpu"]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_method_by_name_brings_the_core_and_trains(index, heavy, tiny, tmp_path):
    environment = Environment(tmp_path / "user", index, heavy)
    assert environment.run("python", "-c", "import posttrain").returncode == 1, "the environment is not fresh"
    environment.pip("install", "posttrain-method-dpo")
    assert {path.split("/")[1] for path in index.asked} == {"posttrain", "posttrain-method-dpo"}

    where = environment.do("python", "-c", "import posttrain; print(posttrain.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path / "user")
    rows = environment.methods()
    assert {name: row["tier"] for name, row in rows.items()} == {"dpo": "stable"}
    assert "--beta" in environment.do("posttrain", "show", "dpo")
    environment.do("posttrain", "train", "dpo", *tiny, "--output", tmp_path / "run")
    # before its first update the policy is its own reference: the loss of every pair is ln 2
    assert losses(tmp_path / "run")[0] == pytest.approx(0.693147, abs=1e-5)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    missing = environment.run("posttrain", "show", "grpo")
    assert (missing.returncode, missing.stderr) == (
        2,
        "Method 'grpo' is not installed. Install it with: pip install posttrain-method-grpo\n",
    )


def test_a_third_party_publishes_and_a_stranger_uses_it(index, heavy, tiny, tmp_path):
    author = Environment(tmp_path / "author", index, heavy)
    author.pip("install", "posttrain")
    author.do("posttrain", "new", "my-loss", "--parent", tmp_path)
    author.do("python", "-m", "build", "--no-isolation", tmp_path / "my-loss")
    dist = sorted((tmp_path / "my-loss" / "dist").iterdir())
    assert [file.name for file in dist] == [
        "posttrain_method_my_loss-0.1.0-py3-none-any.whl",
        "posttrain_method_my_loss-0.1.0.tar.gz",
    ]
    assert dist[0].stat().st_size < WHEEL
    index.upload(*dist)

    stranger = Environment(tmp_path / "stranger", index, heavy)
    stranger.pip("install", "posttrain-method-my-loss", "posttrain[check]")
    row = stranger.methods()["my-loss"]
    assert (row["tier"], row["distribution"], row["problem"]) == ("experimental", "posttrain-method-my-loss", None)
    report = json.loads(stranger.do("posttrain", "check", "my-loss", "--group", "static", "--group", "loss", "--json"))
    assert report["passed"]
    assert {one["group"] for one in report["results"]} == {"static", "loss"}
    stranger.do("posttrain", "train", "my-loss", *tiny, "--output", tmp_path / "run", "--learning-rate", "0.01")
    assert losses(tmp_path / "run")[1] < losses(tmp_path / "run")[0]
    stranger.pip("uninstall", "--yes", "posttrain-method-my-loss")
    assert stranger.methods() == {}
    gone = stranger.run("posttrain", "train", "my-loss", *tiny)
    assert (gone.returncode, gone.stderr) == (
        2,
        "No method is called 'my-loss'.  All methods: posttrain list-methods --available\n",
    )


def test_wheels_of_methods_are_small(index):
    sizes = {file.name: file.stat().st_size for file in index.folder.glob("posttrain-method-*/*.whl")}
    assert len(sizes) >= len(STABLE)
    assert [name for name, size in sizes.items() if size >= WHEEL] == []


def test_the_conformance_kit_is_an_extra(index, heavy, tmp_path):
    environment = Environment(tmp_path / "author", index, heavy)
    environment.pip("install", "posttrain-method-dpo")
    missing = environment.run("posttrain", "check", "dpo")
    assert (missing.returncode, missing.stderr) == (
        2,
        "The conformance kit is not installed. Install it with: pip install 'posttrain[check]'\n",
    )
    environment.pip("install", "posttrain[check]")
    assert environment.do("posttrain", "check", "dpo", "--group", "static").startswith("dpo: 11 passed")
    assert "@pytest.mark.conformance" in environment.do("python", "-m", "pytest", "--markers")

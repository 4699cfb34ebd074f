"""Installs every wheel of a release alone, into an environment that has no other method, and uses it.

``python benchmarks/installs.py`` after ``make dist``. One environment is made that has the core's wheel and, under
links, the packages of this one; then, for each method: pip installs its wheel from the folder of wheels and nowhere
else, ``posttrain list-methods`` names this method and no other, in its version, ``posttrain show`` describes it,
``posttrain train METHOD --model example --data example`` takes three steps with finite losses, and pip takes it away
again. The bundle is installed last, and has to bring every method.

``--core 0.999.0`` does the same under a core that calls itself by another version: the other end of what methods allow.
A process that has imported everything but methods forks for each of them, so that imports are paid for once.
Writes ``results/installs.json``, or merges the methods of ``--only`` into it.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PREFIX = "posttrain_method_"
BUNDLE = "posttrain_methods_all"
STEPS = 3
#: Rooms of the core that need packages which are not everywhere; importing ahead does without them.
TRIED = ("posttrain", "torch", "transformers", "peft", "datasets")


class Environment:
    """A virtual environment with the core's wheel, and links to packages that are not posttrain's."""

    def __init__(self, folder: Path, wheels: Path):
        heavy = folder / "heavy"
        heavy.mkdir(parents=True)
        for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(place).iterdir():
                if "posttrain" not in entry.name and entry.suffix != ".pth":
                    (heavy / entry.name).symlink_to(entry)
        venv.create(folder / "venv", with_pip=False)
        self.python, self.wheels, self.folder = folder / "venv" / "bin" / "python", wheels, folder
        base = str(folder / "venv")
        site = Path(sysconfig.get_path("purelib", vars={"base": base, "platbase": base}))
        (site / "heavy.pth").write_text(f"{heavy}\n")

    def variables(self) -> dict[str, str]:
        """The environment of commands: nothing of the caller's import path or pip settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        return kept | {"PIP_CONFIG_FILE": os.devnull, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a module of the environment's Python: ``pip``, ``posttrain``."""
        command = [str(self.python), "-m", *map(str, words)]
        return subprocess.run(
            command, env=self.variables(), cwd=self.folder, capture_output=True, text=True, check=False
        )

    def pip(self, *words: str) -> str | None:
        """Run pip; what it said, where it failed."""
        done = self.run("pip", "--disable-pip-version-check", *words)
        return None if done.returncode == 0 else (done.stderr or done.stdout).strip()[-500:]

    def install(self, name: str) -> str | None:
        """Install a distribution by name from the wheels alone."""
        return self.pip("install", "--quiet", "--no-index", "--find-links", str(self.wheels), name)


def captured(words: list[str]) -> tuple[int, str]:
    """Exit code and output of one ``posttrain`` command in this process."""
    from posttrain.cli.main import main

    heard = io.StringIO()
    with redirect_stdout(heard), redirect_stderr(heard):
        try:
            code = main(words)
        except SystemExit as end:
            code = int(end.code or 0)
    return code, heard.getvalue()


def use(name: str, version: str, folder: Path) -> str | None:
    """List, show and train the one installed method; why that failed."""
    code, said = captured(["list-methods", "--json"])
    rows = json.loads(said) if code == 0 else []
    found = [(row["name"], row["version"], row["problem"]) for row in rows]
    if found != [(name, version, None)]:
        return f"list-methods says {found or said}"
    code, said = captured(["show", name])
    if code != 0 or name not in said:
        return f"show ended with {code}: {said[-300:]}"
    words = ["train", name, "--model", "example", "--data", "example", "--steps", str(STEPS), "--progress", "quiet"]
    code, said = captured([*words, "--cache", str(folder / "cache"), "--output", str(folder / "runs" / name)])
    if code != 0:
        return f"train ended with {code}: {said[-300:]}"
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    if len(losses) != STEPS or not all(map(math.isfinite, losses)):
        return f"losses are {losses}"
    return None


def pip(*words: str) -> str | None:
    """Run pip in this process, which has imported it already; what it said, where it failed."""
    from pip._internal.cli.main import main

    heard = io.StringIO()
    with redirect_stdout(heard), redirect_stderr(heard):
        code = main(["--disable-pip-version-check", *words])
    return None if code == 0 else f"pip {words[0]} ended with {code}: {heard.getvalue().strip()[-500:]}"


def alone(name: str, version: str, folder: Path, wheels: str) -> str | None:
    """Install the one method, use it, and take it away; why that failed."""
    import importlib

    distribution = f"posttrain-method-{name}"
    if problem := pip("install", "--quiet", "--no-index", "--find-links", wheels, distribution):
        return problem
    importlib.invalidate_caches()
    problem = use(name, version, folder)
    return pip("uninstall", "--quiet", "--yes", distribution) or problem


def serve(folder: Path, wheels: str) -> None:
    """Read ``NAME VERSION`` lines; answer each with a line of JSON: None, or why the method failed."""
    import importlib
    import pkgutil

    import posttrain

    for module in (*TRIED, "pip._internal.cli.main", "pip._internal.commands.install"):
        importlib.import_module(module)
    for found in pkgutil.walk_packages(posttrain.__path__, "posttrain."):
        if not re.search(r"vllm|__main__|deepspeed|sandbox", found.name):
            try:
                importlib.import_module(found.name)
            except ImportError:
                continue
    print("ready", flush=True)
    for line in sys.stdin:
        name, version = line.split()
        read, write = os.pipe()
        if os.fork() == 0:
            try:
                problem = alone(name, version, folder, wheels)
            except BaseException as error:
                problem = f"{type(error).__name__}: {error}"
            os.write(write, json.dumps(problem).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as answer:
            print(answer.read() or '"the process ended without an answer"', flush=True)
        os.wait()


def other_core(version: str, wheels: Path, folder: Path) -> Path:
    """Copy the wheels, the core's under another version."""
    sys.path.insert(0, str(ROOT / ".ci"))
    from hatchling.builders.wheel import WheelBuilder

    from dist import copy_of

    source = copy_of(ROOT, folder / "source")
    for path, pattern in (("pyproject.toml", "version"), ("core/posttrain/__init__.py", "__version__")):
        text = (source / path).read_text()
        (source / path).write_text(re.sub(rf'(?m)^{pattern} = ".+"$', f'{pattern} = "{version}"', text, count=1))
    target = folder / "wheels"
    target.mkdir()
    for wheel in wheels.glob(f"{PREFIX}*.whl"):
        (target / wheel.name).symlink_to(wheel)
    list(WheelBuilder(str(source)).build(directory=str(target), versions=["standard"]))
    return target


def each_alone(environment: Environment, methods: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Seconds and failure of every method, alone in the environment."""
    words = [str(environment.python), str(HERE / "installs.py"), "--serve", str(environment.folder)]
    words += ["--wheels", str(environment.wheels)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    found = {}
    server = subprocess.Popen(words, env=environment.variables(), cwd=environment.folder, text=True, **pipes)
    with server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n", "the core does not start"
        for number, (name, version) in enumerate(methods.items(), 1):
            begun = time.monotonic()
            print(name, version, file=server.stdin, flush=True)
            problem = json.loads(server.stdout.readline())
            found[name] = {"seconds": round(time.monotonic() - begun, 1), "problem": problem}
            print(f"{number}/{len(methods)} {name}: {found[name]['seconds']} s {problem or ''}", flush=True)
        server.stdin.close()
    return found


def bundled(environment: Environment, count: int) -> str | None:
    """Install the bundle; why not every method came with it."""
    if problem := environment.install(BUNDLE.replace("_", "-")):
        return problem
    done = environment.run("posttrain", "list-methods", "--json")
    rows = json.loads(done.stdout) if done.returncode == 0 else []
    broken = [row["name"] for row in rows if row["problem"]]
    return (
        None if len(rows) == count and not broken else f"{len(rows)} of {count} methods, broken: {broken}{done.stderr}"
    )


def main() -> None:
    """Install and use all of them, and write down what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, default=ROOT / "dist", help="folder that make dist has filled")
    parser.add_argument("--only", nargs="*", default=(), metavar="METHOD", help="these methods instead of all")
    parser.add_argument("--core", metavar="VERSION", help="a core that calls itself by this version")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "installs.json")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, str(options.wheels))
        return
    names = [file.name.split("-")[:2] for file in sorted(options.wheels.glob(f"{PREFIX}*.whl"))]
    methods = {name.removeprefix(PREFIX).replace("_", "-"): version for name, version in names}
    chosen = {name: version for name, version in methods.items() if name in (options.only or methods)}
    with tempfile.TemporaryDirectory() as place:
        folder, wheels = Path(place), options.wheels.resolve()
        environment = Environment(folder, other_core(options.core, wheels, folder) if options.core else wheels)
        if problem := environment.install("posttrain"):
            raise SystemExit(f"The core's wheel cannot be installed: {problem}")
        begun = time.monotonic()
        found = each_alone(environment, chosen)
        seconds = round(time.monotonic() - begun)
        bundle = None if options.core else bundled(environment, len(methods))
    core = options.core or next(options.wheels.glob("posttrain-*.whl")).name.split("-")[1]
    results = json.loads(options.output.read_text()) if options.output.is_file() else {}
    earlier = results.get(core, {}).get("methods", {}) if options.only else {}
    results[core] = {"cores": os.cpu_count(), "seconds": seconds, "bundle": bundle, "methods": earlier | found}
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    failed = [name for name, one in found.items() if one["problem"]]
    print(f"core {core}: {len(found)} wheels, each alone, {seconds} s; failed: {', '.join(failed) or 'none'}")
    print(f"bundle: {bundle or 'every method'}")
    raise SystemExit(bool(failed or bundle))


if __name__ == "__main__":
    main()

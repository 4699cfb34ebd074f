"""Every measurement is a process of its own; the peer's have an environment of their own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.bench.cases import CASES, Work

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / "benchmarks" / ".peer"
#: What is installed into the peer's environment, in this order: TRL alone would bring a newer torch.
INSTALLS = (["torch==2.13.0"], ["trl==1.16.0", "transformers<5.20", "peft"])
MODULES = {"posttrain": "benchmarks.bench.ours", "trl": "benchmarks.bench.theirs"}
LIMIT = 3600


def peer_python(given: str | None) -> str:
    """The named interpreter, or that of the peer's own environment, which is made on the first call."""
    if given:
        return given
    python = PEER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = PEER / "ready"
    if not ready.exists():
        print(f"Making the peer's environment in {PEER} (about a minute)...", flush=True)
        call([sys.executable, "-m", "venv", "--clear", str(PEER)], 1)
        for packages in INSTALLS:
            call([str(python), "-m", "pip", "install", "--quiet", *packages], 1)
        ready.touch()
    return str(python)


def environment(threads: int) -> dict[str, str]:
    """The same for both sides: as many threads, no network, no warnings among the figures."""
    told = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    return os.environ | told


def call(command: list[str], threads: int) -> str:
    """Run a process from the repository's folder; its output, or an end with what it said."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(threads), cwd=ROOT, timeout=LIMIT
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def measure(side: str, python: str, work: Work, threads: int) -> dict[str, Any]:
    """One piece of work on one side. Times count from the start of the process."""
    if CASES[work.case].command and side == "posttrain":
        return _command(python, work, threads)
    Path(work.result).unlink(missing_ok=True)
    file = Path(work.result).with_suffix(".work.json")
    work.write(file)
    begun = time.time()
    call([python, "-m", MODULES[side], str(file)], threads)
    found = json.loads(Path(work.result).read_text(encoding="utf-8"))
    found["ready"] = found.pop("begun") - begun
    ends = found.pop("ends")
    found["seconds"] = [end - start for start, end in pairwise([begun + found["ready"], *ends])]
    return found


def _command(python: str, work: Work, threads: int) -> dict[str, Any]:
    """``posttrain train``: the first step begins when its line of output comes, less the seconds it says it took."""
    from benchmarks.bench.ours import arguments

    case = CASES[work.case]
    told = arguments(work, case) | {"progress": "json"}
    with tempfile.TemporaryDirectory() as folder:
        told |= {"output": f"{folder}/run", "data": [told["data"]]}
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps(told), encoding="utf-8")  # JSON is YAML
        command = [python, "-m", "posttrain", "train", case.method, "--config", str(config)]
        begun = time.time()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment(threads), cwd=ROOT
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            came = time.time()
            process.stdout.read()
        if process.returncode or not line:
            raise SystemExit(f"posttrain train {case.method} ended with status {process.returncode}.")
        first = json.loads(line)
    return {
        "ready": came - begun - first["seconds"],
        "seconds": [first["seconds"]],
        "losses": [first["loss"]],
        "peak_mb": first["peak_memory_mb"],
    }


def versions(python: str, package: str) -> dict[str, str]:
    """Versions that shape the figures of one side."""
    code = (
        "import importlib.metadata as m, json; "
        f"print(json.dumps({{n: m.version(n) for n in ('{package}', 'torch', 'transformers')}}))"
    )
    return json.loads(call([python, "-c", code], 1).splitlines()[-1])


def processor(file: Path = Path("/proc/cpuinfo")) -> str:
    """What the machine computes with, as it names itself, and its units for bfloat16, on which autocast hangs."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    facts = dict(map(str.strip, line.split(":", 1)) for line in reversed(lines) if ":" in line)
    flags = facts.get("flags", "").split()
    units = " with AMX" if "amx_bf16" in flags else " with AVX512-BF16" if "avx512_bf16" in flags else ""
    return facts.get("model name", platform.processor()) + units

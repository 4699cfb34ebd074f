"""Processes that are started here, and processes that find each other because somebody else started them."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from posttrain.distributed import launch, world
from posttrain.errors import SettingsError
from posttrain.settings import Settings

WORKER = (str(Path(__file__).with_name("worker.py")),)


def free_port() -> int:
    with contextlib.closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def bare() -> dict[str, str]:
    """The environment without what any launcher, pytest's own workers among them, may have left."""
    names = {name for names in world.LAUNCHERS.values() for name in names}
    return {k: v for k, v in os.environ.items() if k not in names} | {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("ends", "code", "said", "unsaid"),
    [
        ([], 0, "", ""),
        (["1=user"], 2, "rank 1: row 7 is wrong\n", "lost"),
        (["0=user", "1=user"], 2, "row 7 is wrong\n", "rank 0"),
        (["1=stopped", "0=sleep"], 3, "rank 1: an alert\n", ""),
        (["1=crash"], 1, "rank 1: KeyError: 'nothing'\n", "lost"),
        (["1=killed", "0=sleep"], 1, "Rank 1 was ended by SIGKILL; the others were ended too.", "lost"),
        (["0=exit"], 1, "Continue from the last checkpoint with: posttrain resume the-run\n", "lost"),
    ],
)
def test_the_error_of_the_process_that_failed_first(capfd, ends, code, said, unsaid):
    """Its text once, its exit code, and all other processes ended within 30 s, those that hang too."""
    begun = time.monotonic()
    assert launch.launch(ends, Settings(nproc=2).distributed, "the-run", WORKER) == code
    assert time.monotonic() - begun < 30
    out, err = capfd.readouterr()
    assert out.count("rank 0 of 2 by torchrun, sum 3") == 1
    assert "rank 1 of 2" not in out
    assert said in err
    assert err.count(said) == 1 or not said
    assert not unsaid or unsaid not in err
    assert ("Traceback" in err) == ("1=crash" in ends)


def test_a_process_that_was_ended_for_another_is_not_the_one_that_failed(tmp_path, capsys):
    """Its end is known to the second, and seems to come before the word that the other one left."""
    file = tmp_path / "error.json"
    word = {"message": "row 7 is wrong", "exit_code": 2, "traceback": "", "time": 100.4, "lost": False}
    file.write_text(json.dumps({"posttrain": word}))
    ended = SimpleNamespace(error_file="none", exitcode=-15, timestamp=100, local_rank=0)
    wrong = SimpleNamespace(error_file=str(file), exitcode=2, timestamp=100, local_rank=1)
    assert launch._report({0: ended, 1: wrong}, tmp_path, "run") == 2
    assert capsys.readouterr().err == "rank 1: row 7 is wrong\n"
    assert launch._report({0: ended}, tmp_path, "run") == 1
    assert capsys.readouterr().err.startswith("Rank 0 was ended by SIGTERM;")


def test_two_machines_meet_at_an_endpoint(tmp_path):
    """Rank 0 is on the machine with node rank 0; only its process speaks."""
    code = (
        "import sys; from posttrain.settings import Settings; from posttrain.distributed.launch import launch; "
        "sys.exit(launch([f'place={sys.argv[3]}'], Settings(nnodes='2', node_rank=int(sys.argv[1]), "
        "rdzv_endpoint=sys.argv[2]).distributed, 'run', (sys.argv[4],)))"
    )
    place = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", code]
    machines = [
        subprocess.Popen([*command, str(rank), place, str(tmp_path / "at"), *WORKER], stdout=subprocess.PIPE, text=True,
        env=bare()) for rank in (1, 0)
    ]  # fmt: skip
    outputs = [machine.communicate(timeout=350)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0]
    assert outputs == ["", "rank 0 of 2 by torchrun, sum 3\n"]
    assert (tmp_path / "at-1").read_text() == "1 2 0 torchrun 3"


def test_machines_need_an_endpoint():
    with pytest.raises(SettingsError, match=r"^2 machines need a place to find each other: --rdzv-endpoint HOST:PORT"):
        launch.launch([], Settings(nnodes="2").distributed, "run", WORKER)
    with pytest.raises(SettingsError, match=r"^nnodes is 'two', expected a number of machines such as 2, or a range"):
        launch.launch([], Settings(nnodes="two").distributed, "run", WORKER)


@pytest.mark.parametrize("by", ["torchrun", "srun"])
def test_processes_that_others_started_join(tmp_path, by):
    """Two processes, three ways of telling each which one it is; two spoke would be a fault."""
    port = str(free_port())
    if by == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *WORKER]
        done = subprocess.run(
            [*command, f"place={tmp_path}/at"], capture_output=True, text=True, env=bare(), check=True
        )
        out = done.stdout
    else:
        processes = []
        for rank in ("0", "1"):
            names = dict(zip(world.LAUNCHERS[by], (rank, "2", rank), strict=True))
            if by == "srun":
                names |= {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": str(int(port) - 20000)} if int(port) < 40000 else {}
                names |= {"MASTER_PORT": port} if int(port) >= 40000 else {}
                names |= {"SLURM_STEP_NODELIST": "localhost"}
            else:
                names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            processes.append(
                subprocess.Popen(
                    [sys.executable, *WORKER, f"place={tmp_path}/at"],
                    env=bare() | names,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        out = "".join(process.communicate(timeout=60)[0] for process in processes)
    assert out == f"rank 0 of 2 by {by}, sum 3\n"
    assert (tmp_path / "at-1").read_text() == f"1 2 1 {by} 3"


def test_a_batch_script_is_not_a_step(monkeypatch):
    """Slurm names the tasks of a whole job in its script too, which is one process."""
    for name in {n for names in world.LAUNCHERS.values() for n in names}:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert world.find_world() is None
    assert launch.wanted(Settings(nproc=2).distributed)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert world.find_world() == world.World(0, 2, 0, "srun")
    assert not launch.wanted(Settings(nproc=2).distributed)
    assert launch.wanted(Settings(nproc=2, nnodes="2", rdzv_endpoint="node1:29500").distributed)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node[03-05,09],other", "node03"),
        ("a,b", "a"),
        ("gpu[7]-x", "gpu7-x"),
        ("a1-b[2,4]", "a1-b2"),
    ],
)
def test_the_first_machine_of_slurms_short_form(nodes, first):
    assert world._first_host(nodes) == first

"""``posttrain doctor``: hardware and packages, strategies and a sandbox that would work, and a model's memory."""

from __future__ import annotations

from typing import Any

from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json, print_plan, print_table

#: Packages that affect what a run can do.
PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "datasets"),
    *("bitsandbytes", "deepspeed", "vllm", "flash-attn", "liger-kernel"),
)

#: Gain of bfloat16 from which it is reported.
PAYS = 1.3


def run(arguments: list[str]) -> int:
    """Print the findings; return exit code 1 where the strategy that a configuration names would not work."""
    parser = Parser(
        "doctor", "Say what is on this machine, which strategies would work, and the memory they would take."
    )
    parser.add_argument("--config", help="YAML or TOML file of a run: its method, model and options are looked at")
    parser.add_argument("--model", help="model whose memory is estimated: a folder, or a Hub id that is on disk")
    parser.add_argument("--nproc", type=int, help="processes that share the work [one a GPU, at least 2]")
    parser.add_json()
    options = parser.parse_args(arguments)
    from posttrain.assembly.doctor import examine

    report = examine(options.config, options.model, options.nproc)
    if options.json:
        print_json(report)
    else:
        _print(report)
    return 0 if report["wanted"] is None or report["wanted"]["works"] else 1


def _print(report: dict[str, Any]) -> None:
    print_plan({"hardware": report["hardware"]})
    found = report["packages"]
    print_plan({"packages": {name: found.get(name, "not installed") for name in PACKAGES}})
    print()
    rows = [[row["strategy"], "yes" if row["works"] else "no", row["why"]] for row in report["strategies"]]
    print_table(["STRATEGY", "WORKS", "WHY"], rows)
    sandbox = report["sandbox"]
    print(f"\nsandbox for programs of a model: {'works' if sandbox['works'] else 'does not work'}: {sandbox['why']}")
    hardware = report["hardware"]
    if not hardware["gpus"] and hardware["bfloat16_gain_on_the_cpu"] >= PAYS:
        print(
            f"\nThis processor multiplies bfloat16 {hardware['bfloat16_gain_on_the_cpu']} times as fast as float32: "
            "--autocast, or\n--bfloat16-gradients, which leaves log-probs and losses exact."
        )
    if report["memory"]:
        _print_memory(report)
    if report["wanted"] is not None:
        state = "would work" if report["wanted"]["works"] else "would not work"
        print(f"\nThe configuration's strategy {report['wanted']['strategy']} {state}: {report['wanted']['why']}")


def _print_memory(report: dict[str, Any]) -> None:
    memory = report["memory"]
    roles = list(dict.fromkeys(role for row in memory["strategies"] for role in row["memory_mb"] if role != "total"))
    print(f"\nEstimated peak of a process for {memory['model']} ({memory['parameters']:,} parameters), in MB;")
    print(f"{memory['free_mb']:,} MB are free on {memory['where']}.")
    rows = []
    for row in memory["strategies"]:
        cells = [f"{row['memory_mb'].get(role, 0):,}" for role in roles]
        rows.append([row["strategy"], str(row["processes"]), *cells, f"{row['memory_mb']['total']:,}", row["fits"]])
    names = [role.replace("_", " ").upper() for role in roles]
    print_table(["STRATEGY", "PROCESSES", *names, "TOTAL", "FITS"], rows)

"""A command that joins its processes, says who it is, and ends as it is told; it imports no model."""

import os
import sys
import time

from posttrain.cli import main as command
from posttrain.errors import DataError, RunStopped


def run(arguments: list[str]) -> int:
    from posttrain.distributed.world import join, lost_contact, quieten

    ends = dict(word.split("=") for word in arguments if "=" in word)
    quieten()
    world = join("cpu")
    import torch
    import torch.distributed as dist

    total = torch.tensor([float(world.rank + 1)])
    dist.all_reduce(total)
    print(f"rank {world.rank} of {world.size} by {world.by}, sum {total.item():g}", flush=True)
    if "place" in ends:
        with open(f"{ends['place']}-{world.rank}", "w") as file:
            file.write(f"{world.rank} {world.size} {world.local} {world.by} {total.item():g}")
    kind = ends.get(str(world.rank), "")
    if kind == "user":
        raise DataError("row 7 is wrong")
    if kind == "stopped":
        raise RunStopped("an alert")
    if kind == "crash":
        raise KeyError("nothing")
    if kind == "killed":
        os.kill(os.getpid(), 9)
    if kind == "exit":
        os._exit(7)
    if kind == "sleep":
        time.sleep(600)
    try:
        dist.barrier()
    except RuntimeError as error:
        raise lost_contact(error) or error from None
    return 0


if __name__ == "__main__":
    command.COMMANDS["work"] = ("__main__", "")
    sys.exit(command.main(["work", *sys.argv[1:]]))

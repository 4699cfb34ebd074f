"""Lets the torchvision that is installed be imported beside torch's build for CPUs.

The package index has torchvision's build for GPUs alone, whose compiled operators load with no other torch. Reading
pictures uses none of them, but two of their signatures are looked up when torchvision is imported: they are declared
here, without a kernel, so that whoever calls one gets an error. A torchvision that can be imported stays as it is.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

DECLARED = """

if not _has_ops():
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def imported() -> subprocess.CompletedProcess[str]:
    """Import torchvision in another process."""
    return subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)


if imported().returncode:
    file = Path(find_spec("torchvision").submodule_search_locations[0]) / "extension.py"
    file.write_text(file.read_text() + DECLARED)
    if (again := imported()).returncode:
        raise SystemExit(f"torchvision cannot be imported here: {again.stderr.strip().splitlines()[-1]}")

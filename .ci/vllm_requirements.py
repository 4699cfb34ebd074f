"""Prints what a vLLM wheel requires on a machine without a GPU, but for torch and the packages it does not use here.

``python .ci/vllm_requirements.py WHEEL``: torch's CPU build is installed already, and torchvision, torchaudio and
torchcodec would bring another build of it; the torchvision that belongs to it is installed afterwards.
"""

import sys
import zipfile
from email.parser import Parser

from packaging.requirements import Requirement

UNUSED = {"torch", "torchaudio", "torchvision", "torchcodec"}

with zipfile.ZipFile(sys.argv[1]) as wheel:
    (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    lines = Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist", [])
for requirement in map(Requirement, lines):
    if requirement.name not in UNUSED and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
        requirement.marker = None
        print(requirement)

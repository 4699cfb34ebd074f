"""Folders of tiny vision-language models, made once."""

import pytest
import transformers
from packaging.version import Version
from posttrain_testkit.tiny_vision import save_tiny_vision

#: Older families take no features of images, and are refused.
NEEDED = Version("5.18")


@pytest.fixture(autouse=True, scope="session")
def new_enough():
    if Version(transformers.__version__) < NEEDED:
        pytest.skip(f"images need transformers {NEEDED}")


@pytest.fixture(scope="session")
def vision(tmp_path_factory):
    """``vision(family)``: the folder of such a model with its processor."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = save_tiny_vision(family, tmp_path_factory.mktemp(family.replace(".", "-")))
        return str(made[family])

    return folder

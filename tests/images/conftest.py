"""Folders of tiny vision-language models, made once."""

import pytest
from posttrain_testkit.tiny_vision import save_tiny_vision


@pytest.fixture(scope="session")
def vision(tmp_path_factory):
    """``vision(family)``: the folder of such a model with its processor."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = save_tiny_vision(family, tmp_path_factory.mktemp(family.replace(".", "-")))
        return str(made[family])

    return folder

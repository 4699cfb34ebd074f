"""Adapters that a trainer sends stay in a folder of the user's own."""

import os
import tempfile

import pytest
from posttrain.generation.adapter_folder import adapter_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The shared folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_is_private_and_the_same_each_time(temporary):
    folder = adapter_folder("posttrain-1a2b3c4d-7")
    assert folder == adapter_folder("posttrain-1a2b3c4d-7")
    assert folder.parent.parent == temporary
    assert folder.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "name",
    ["../../x-1", "/etc/x-1", "a/b-1", "..", "", "-1", "a", "a-", "a-1\n", "a-1/..", "a.b-1", "ä-1", "a" * 200 + "-1"],
)
def test_names_that_would_leave_it_are_refused(temporary, name):
    with pytest.raises(ValueError, match=r"^adapter name .* is not letters, digits, '-' and '_' that end in -VERSION$"):
        adapter_folder(name)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "open", "file"])
def test_a_place_that_others_can_reach_is_refused(temporary, kind):
    place = temporary / f"posttrain-adapters-{os.getuid()}"
    if kind == "link":
        (temporary / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(temporary / "elsewhere")
    elif kind == "open":
        place.mkdir()
        place.chmod(0o777)
    else:
        place.write_text("")
    with pytest.raises(ValueError, match=r"is not a folder that user \d+ alone can enter\. Remove it, or set TMPDIR"):
        adapter_folder("a-1")

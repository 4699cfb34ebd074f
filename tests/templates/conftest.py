"""Published chat templates, read from the wheel of another project: none is copied."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the lab's own modules; tests are no package


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Name -> text of every template in the wheel; skips where there is none and no package index answers."""
    from template_published import PEER, published_in, wheel_here

    wheel = wheel_here()
    if wheel is None:
        folder = tmp_path_factory.mktemp("wheel")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "0", "--timeout", "10"]
        done = subprocess.run([*command, "--dest", str(folder), PEER], capture_output=True, text=True, timeout=120)
        wheel = next(Path(folder).glob("*.whl"), None)
        if wheel is None:
            pytest.skip(
                f"{PEER} is not in the environment's wheels and no index gave it (make setup): {done.stderr[-200:]}"
            )
    assert zipfile.is_zipfile(wheel)
    return published_in(wheel)

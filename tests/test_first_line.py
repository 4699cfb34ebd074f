"""What an exception of somebody else's says, in one line; some say nothing."""

import pytest
from posttrain.errors import first_line


@pytest.mark.parametrize(
    ("error", "want"),
    [
        (ValueError("a\nb"), "a"),
        (ValueError("\n  a \nb"), "a"),
        (NotImplementedError(), "NotImplementedError"),
        (OSError(" \n "), "OSError"),
    ],
)
def test_first_line(error, want):
    assert first_line(error) == want

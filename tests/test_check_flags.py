"""Mistakes in the flags of ``posttrain check`` are one line on stderr and exit code 2; nothing is checked."""

import pytest
from posttrain.cli.main import main


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--onyl", "x"], "Unrecognized arguments: --onyl.  Flags: posttrain check --help"),
        (["dpo", "--group", "fast"], "Argument --group: invalid choice: 'fast'"),
        (["dpo", "--js"], "Unrecognized arguments: --js.  Flags: posttrain check --help"),
        (["dpo", "--only"], "Argument --only: expected one argument.  Flags: posttrain check --help"),
        (["dpo", "--only", "check_loss_is_finit"], "Did you mean 'check_loss_is_finite'?"),
        (
            ["dpo", "--only", "check_loss_is_finite", "--group", "static"],
            "'check_loss_is_finite' is of the group 'loss', which --group leaves out.",
        ),
        (["qqqqq"], "No method is called 'qqqqq'.  All methods: posttrain list-methods --available"),
        (["./no-such-folder"], "There is no folder './no-such-folder'. Make a plugin with: posttrain new NAME"),
        (["--goldens"], "Argument --goldens: expected one argument.  Flags: posttrain check --help"),
        (["--goldens", "no-such.json"], "no-such.json"),
        (["--goldens", "x.json", "--list"], "--list chooses checks, and --goldens runs none. Leave one of them out."),
        (["--goldens", "x.json", "--only", "a", "--only", "b"], "--only names 2: a, b."),
    ],
)
def test_mistake_is_one_line(words, line, capsys):
    assert main(["check", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert line in printed.err
    assert printed.err.count("\n") == 1


def test_groups_may_be_repeated(capsys):
    assert main(["check", "--list", "--group", "static", "--group", "training"]) == 0
    groups = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert groups == {"static", "training"}

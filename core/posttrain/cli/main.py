"""``posttrain COMMAND``: dispatch, error messages and exit codes."""

from __future__ import annotations

import importlib
import io
import os
import sys

from posttrain import __version__
from posttrain.catalogue import permission
from posttrain.catalogue.defaults import unknown
from posttrain.errors import PosttrainError, SettingsError
from posttrain.settings.secret_options import redacted

#: Command -> (module with ``run(arguments) -> int``, what it does).
COMMANDS = {
    "train": ("posttrain.cli.train", "train a model with a method"),
    "resume": ("posttrain.cli.resume", "continue a run that was interrupted"),
    "status": ("posttrain.cli.status", "how a run stands: one verdict, and an exit code"),
    "explain": ("posttrain.cli.explain", "why a run ended, what looks wrong, what to change first"),
    "stop": ("posttrain.cli.stop", "end a run after its step, saved"),
    "checkpoint": ("posttrain.cli.checkpoint", "have a run save a checkpoint now"),
    "watch": ("posttrain.cli.watch", "follow runs that go on elsewhere"),
    "report": ("posttrain.cli.report", "write one HTML page about runs"),
    "mcp": ("posttrain.cli.mcp", "serve tools about runs to an agent"),
    "export": ("posttrain.cli.export", "put a trained adapter into its base's weights"),
    "verify": ("posttrain.cli.verify", "compare a saved model with the one that was trained"),
    "evaluate": ("posttrain.cli.evaluate", "how good a model is: scores with intervals, two models compared"),
    "compare": ("posttrain.cli.compare", "methods and settings on the same rows: trained, measured, ranked"),
    "generate": ("posttrain.cli.generate", "let a model answer prompts"),
    "serve-rewards": ("posttrain.cli.serve_rewards", "score completions for runs, over HTTP"),
    "place": ("posttrain.cli.place", "run servers on a Ray cluster and train with them"),
    "serve-rollouts": ("posttrain.cli.serve_rollouts", "serve a model to online runs, through vLLM"),
    "list-methods": ("posttrain.cli.list_methods", "methods that are installed, or available"),
    "list-environments": ("posttrain.cli.list_environments", "tasks that answer the model: tools, turns"),
    "episodes": ("posttrain.cli.episodes", "episodes of a run turn by turn, or rows made of them"),
    "show": ("posttrain.cli.show", "what a method is, and its options"),
    "check-data": ("posttrain.cli.check_data", "read data as a run would, without a model"),
    "doctor": ("posttrain.cli.doctor", "what is on this machine, which strategies would work, what memory they take"),
    "docs": ("posttrain.cli.docs", "print a page of the documentation"),
    "check": ("posttrain.cli.check", "run the conformance kit on a method"),
    "check-environment": ("posttrain.cli.check_environment", "play an environment and see that it keeps its promises"),
    "plugins": ("posttrain.cli.plugins", "installed plugins; 'plugins audit' adds file hashes"),
    "new": ("posttrain.cli.new", "write a new plugin"),
    "sync": ("posttrain.cli.sync", "generate what follows from the cards"),
    "promote": ("posttrain.cli.promote", "move a method between experimental and stable"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 failed run, 2 mistake of the user, 3 stopped by an alert."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # under an ASCII locale no text of others may end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        words, allowed = permission.take_flag(words)
        with permission.allowing(allowed):
            return _dispatch(words)
    except PosttrainError as error:
        if _shown_elsewhere(error, error.exit_code):
            return error.exit_code
        if debug:
            raise
        print(redacted(_by_rank(error)), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # the reader has closed the pipe (posttrain ... | head); Python would complain once more while it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:  # a fault of the program
        if _shown_elsewhere(error, 1):  # with its traceback
            return 1
        raise


def _shown_elsewhere(error: Exception, exit_code: int) -> bool:
    """Whether the process that started this one, among others, shows the error."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return False
    from posttrain.distributed.launch import write_error_file

    return write_error_file(error, exit_code)


def _by_rank(error: Exception) -> str:
    """Return the text of the error, with the rank unless the process is the first of several."""
    rank = os.environ.get("RANK", "0")
    return str(error) if rank == "0" else f"rank {rank}: {error}"


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] in ("--version", "-V"):
        print(f"posttrain {__version__}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        sentence = unknown(command, COMMANDS).replace("Unknown option", "Unknown command")
        raise SettingsError(f"{sentence}  All commands: posttrain --help")
    code = importlib.import_module(COMMANDS[command][0]).run(rest)
    sys.stdout.flush()
    return code


def _usage() -> str:
    lines = [f"  {name:<19}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: posttrain COMMAND ...",
            "",
            *lines,
            "",
            "posttrain COMMAND --help says more. --debug shows where an error came from, --version the version.",
            "--allow-plugins NAME,NAME, with any command: of plugins from other hands only these may be loaded.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

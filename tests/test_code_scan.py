"""No pickle of others, no code of others, no shell: every call that could run something is in a list, with why."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [file for part in ("core", "testkit", "plugins", "contrib", "examples") for file in (ROOT / part).rglob("*.py")]
#: (file, what) -> why it may. This list only gets shorter.
ALLOWED = {
    ("core/posttrain/generation/local/worker.py", "import pickle"): "between two processes of one run",
    ("core/posttrain/generation/local/process.py", "import pickle"): "between two processes of one run",
    ("core/posttrain/generation/local/worker.py", "pickle.loads"): "between two processes of one run",
    ("core/posttrain/generation/local/process.py", "pickle.loads"): "between two processes of one run",
    ("core/posttrain/sandbox/ends.py", "exec"): "runs in the sandbox",
}
MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle", "_pickle"}
CALLS = {"eval", "exec", "os.system", "os.popen", "tempfile.mktemp", "ssl._create_unverified_context", "pickle.loads"}
CALLS |= {"pickle.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "commands.getoutput"}


def dangers(tree):
    """What in a file could run code or read it from data, as it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {one.name}" for one in node.names if one.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in MODULES:
            yield f"import {node.module}"
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {one.arg: ast.unparse(one.value) for one in node.keywords}
            if name in CALLS:
                yield name
            if name.endswith("torch.load") and given.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
            if given.get("allow_pickle") == "True" or given.get("shell") == "True" or given.get("verify") == "False":
                yield f"{name} with allow_pickle, shell or without verify"
            if given.get("trust_remote_code") == "True":
                yield f"{name} with trust_remote_code"
            if name.endswith("load_dataset") and "trust_remote_code" in given:
                yield f"{name} with trust_remote_code"
        elif isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
            yield "listens to everybody"


def test_nothing_is_there_that_could_run_code_of_others():
    assert len(FILES) > 600
    found = {
        (str(path.relative_to(ROOT)), what) for path in FILES for what in dangers(ast.parse(path.read_text("utf-8")))
    }
    assert {(file, what) for file, what in found if not Path(file).name.startswith("test_")} == set(ALLOWED)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "eval(text)",
        "subprocess.run(words, shell=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "server = Server(('0.0.0.0', 80))",
        "requests.get(url, verify=False)",
    ],
)
def test_a_planted_call_is_found(text):
    assert list(dangers(ast.parse(text)))


def test_what_is_fine_is_not_found():
    text = "torch.load(path, weights_only=True)\nyaml.safe_load(x)\nmodel.eval()\nf(trust_remote_code=False)"
    assert list(dangers(ast.parse(text))) == []

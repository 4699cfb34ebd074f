"""``posttrain check --goldens``: what is compared, what is reported, and that it knows no method."""

import json
import math
from pathlib import Path

import pytest
from posttrain.errors import DataError, SettingsError
from posttrain_testkit.goldens.compare import entries_of, evaluate, run
from posttrain_testkit.goldens.inputs import columns_of, given_statistics, read_inputs, views_of
from posttrain_testkit.goldens.rollouts import rollouts_of

ROOT = Path(__file__).parents[1]
GOLDENS = ROOT / "tests" / "goldens"
STABLE = [str(ROOT / "plugins" / name) for name in ("sft", "reward", "dpo", "rloo", "grpo")]

CARD = """
name = "squares"
version = "0.1.0"
tier = "experimental"
summary = "A method that nobody has heard of."
schema = "{schema}"
needs = {needs}
requires = ["posttrain>=0.1,<1"]
[goldens]
{goldens}
"""
MODULE = '''
"""A method that nobody has heard of."""
from dataclasses import dataclass
import torch
from posttrain import PerToken, hookimpl

@dataclass(frozen=True)
class Config:
    """Options."""

    anchor_weight: float = 1.0
    """Weight."""

{hooks}
'''


@pytest.fixture
def plugin(tmp_path):
    def write(hooks, goldens="", needs='["reference"]', schema="prompt-completion"):
        package = tmp_path / "squares" / "posttrain_method_squares"
        package.mkdir(parents=True)
        (package / "method.toml").write_text(CARD.format(schema=schema, needs=needs, goldens=goldens))
        (package / "__init__.py").write_text(MODULE.format(hooks=hooks))
        return str(package.parent)

    return write


@pytest.fixture
def file(tmp_path):
    def write(entries):
        path = tmp_path / "goldens.json"
        path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
        return path

    return write


def dpo_entry(**changes):
    """Sums -6 and -9 against -7 and -8.5: margin 1.5, and with beta 0.2 ln(1 + e^-0.3) = 0.554355."""
    inputs = {"policy_chosen_logp": -6.0, "policy_rejected_logp": -9.0, "ref_chosen_logp": -7.0}
    inputs |= {"ref_rejected_logp": -8.5, "chosen_len": 3, "rejected_len": 2}
    return {"inputs": inputs, "hyperparameters": {"beta": 0.2}, "loss": 0.554355, **changes}


METHODS = sorted(str(path) for tier in ("plugins", "contrib") for path in (ROOT / tier).iterdir() if path.is_dir())


@pytest.mark.parametrize("name", ["offline.json", "online.json"])
def test_entries_without_a_method_are_marked(name):
    """Each other entry is collected beside the one method that answers it."""
    entries = json.loads((GOLDENS / name).read_text())
    answered = [entry for folder in METHODS for entry in entries_of(GOLDENS / name, folder)]
    assert len(answered) == len(set(answered))
    marked = {entry for entry, facts in entries.items() if facts.get("implemented") is False}
    assert set(entries) - set(answered) - {"_shared", "_meta"} == marked


def test_every_method_has_an_entry():
    """The replay buffer's loss is GRPO's, and what it keeps is tested beside it."""
    answering = [
        folder
        for folder in METHODS
        if any(entries_of(GOLDENS / f"{name}.json", folder) for name in ("offline", "online"))
    ]
    assert [Path(folder).name for folder in METHODS if folder not in answering] == ["grpo-replay-buffer"]


@pytest.mark.parametrize("name", ["offline.json", "online.json"])
@pytest.mark.parametrize("reward_head", [False, True])
def test_the_inputs_of_every_entry_can_be_read(name, reward_head):
    """Of methods that do not exist yet, too: no name or shape in the catalogue trips the reader."""
    entries = json.loads((GOLDENS / name).read_text())
    for key, entry in entries.items():
        if not key.startswith("_"):
            raw = {**entries.get("_shared", {}).get(entry.get("input"), {}), **entry.get("inputs", {})}
            inputs = read_inputs(raw, reward_head)
            policy = views_of(inputs, "policy", given_statistics(inputs))
            sizes = {len(view.mask) for view in vars(policy).values()} if policy else set()
            assert len(columns_of(inputs)) >= len(inputs.others), key
            sampled = "completion" in inputs.roles and "policy" in inputs.roles["completion"].logps
            assert (rollouts_of(inputs) is not None) == (sampled and bool({"group", "rewards"} & set(raw))), key
            assert all(size > 0 for size in sizes), key


def test_other_inputs_and_both_numbers(file, capsys):
    path = file({"dpo": dpo_entry()})
    assert run(path, folders=STABLE) == 0
    assert "dpo                              equal           loss 0.554355" in capsys.readouterr().out
    path = file({"dpo": dpo_entry(loss=0.6)})
    assert run(path, folders=STABLE) == 1
    assert "differs         loss: expected 0.600000, found 0.554355" in capsys.readouterr().out


def test_json_report(file, capsys):
    path = file({"dpo": dpo_entry(extra_checks={"at_init": 0.693147}), "unheard-of": dpo_entry()})
    assert run(path, json_output=True, folders=STABLE) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["summary"] == {"equal": 1, "differs": 0, "not implemented": 1}
    assert report["results"][0]["comparisons"][0]["found"] == pytest.approx(0.554355, abs=1e-6)
    assert report["results"][0]["not_compared"] == ["at_init"]
    assert report["results"][1]["reason"] == "no installed method is called 'unheard-of' or claims it"


def test_one_entry_that_is_missing_fails(file):
    path = file({"dpo": dpo_entry(), "unheard-of": dpo_entry()})
    assert run(path, "dpo", folders=STABLE) == 0
    assert run(path, "unheard-of", folders=STABLE) == 1
    with pytest.raises(SettingsError, match=r"has no entry 'dop'. It has: dpo, unheard-of"):
        evaluate(path, "dop", STABLE)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "holds a list, expected an object of entries by name"),
        ('{"dpo": {"inputs": 3}}', "entry 'dpo' is not an object with 'inputs'"),
        ('{"dpo": {"input": "pairs"}, "_shared": {"other": {}}}', "input 'pairs', which is not under _shared"),
    ],
)
def test_a_file_of_another_kind(file, content, text):
    with pytest.raises(DataError, match=text):
        evaluate(file(content))
    with pytest.raises(DataError, match="cannot be read"):
        evaluate("absent.json")


@pytest.mark.parametrize(
    ("goldens", "value", "status"),
    [
        ('lam = "anchor_weight"', 3.0, "equal"),
        ("", 3.0, "not implemented"),
        ('lam = "=3.0"\nbeta = "="', 3.0, "differs"),  # known, but then the weight stays 1
        ('lam = "=4.0"', 3.0, "not implemented"),
    ],
)
def test_hyper_parameters_reach_options_through_the_card(plugin, file, goldens, value, status):
    """Rows of 2 and 1 tokens, log-ratio squares 4 + 1 and 9, weight 3: (15 + 27) / 2 = 21."""
    hooks = """
@hookimpl
def posttrain_loss(policy, reference, config):
    return config.anchor_weight * policy.completion.sum_of((policy.completion.logps - reference.completion.logps) ** 2)
"""
    inputs = {"policy_tok": [[-1, -2], [-5]], "ref_tok": [[-3, -1], [-2]]}
    path = file({"squares": {"inputs": inputs, "hyperparameters": {"lam": value}, "loss": 21.0}})
    assert evaluate(path, folders=[plugin(hooks, goldens)])[0].status == status


def test_gradients_catch_a_missing_detach(plugin, file):
    """The value of x * detach(x) is that of x * x, its gradient half."""
    hooks = """
@hookimpl
def posttrain_loss(policy):
    return policy.completion.sum_of(policy.completion.logps * policy.completion.logps.detach())
"""
    entry = {"input": "set", "loss": 7.0, "grad_logp_new": [[-0.5, -1], [-1.5]], "family": "PG"}
    shared = {"_shared": {"set": {"logp_new": [[-1, -2], [-3]], "lengths": [2, 1]}}}
    folder = plugin(hooks, needs="[]")
    assert evaluate(file(shared | {"squares": entry}), folders=[folder])[0].status == "equal"
    entry["grad_logp_new"] = [[-1, -2], [-3]]
    result = evaluate(file(shared | {"squares": entry}), folders=[folder])[0]
    assert result.line().endswith("loss 7.000000; grad_logp_new: expected -3.000000, found -1.500000")


def test_logits_go_through_the_methods_own_statistics(plugin, file):
    """KL of (1/2, 1/2) from (1/4, 3/4): (ln 2 + ln 2/3) / 2 = 0.143841; of equal rows 0; mean 0.071921."""
    hooks = """
@hookimpl
def posttrain_token_statistics(logits, reference_logits):
    p, q = logits.log_softmax(-1), reference_logits.log_softmax(-1)
    return {"divergence": (p.exp() * (p - q)).sum(-1)}

@hookimpl
def posttrain_loss(policy):
    return PerToken(policy.completion.divergence, policy.completion.mask)
"""
    three = math.log(3)
    inputs = {"logits": [[0, 0], [1, 2]], "ref_logits": [[0, three], [1, 2]], "labels": [0, 1]}
    result = evaluate(file({"squares": {"inputs": inputs, "loss": 0.071921}}), folders=[plugin(hooks)])[0]
    assert result.status == "equal", result.line()


def test_a_method_that_raises_is_one_row(plugin, file):
    hooks = "@hookimpl\ndef posttrain_loss(policy):\n    return policy.chosen.sum\n"
    path = file({"squares": {"inputs": {"policy_tok": [[-1]]}, "loss": 1.0}, "dpo": dpo_entry()})
    results = evaluate(path, folders=[*STABLE, plugin(hooks)])
    assert [one.status for one in results] == ["differs", "equal"]
    assert results[0].reason.startswith("raised AttributeError")


def test_a_reduced_loss_is_refused(plugin, file):
    hooks = "@hookimpl\ndef posttrain_loss(policy):\n    return policy.completion.sum.mean()\n"
    result = evaluate(file({"squares": {"inputs": {"policy_tok": [[-1]]}, "loss": -1.0}}), folders=[plugin(hooks)])[0]
    assert result.status == "differs"
    assert "A loss is unreduced" in result.reason


ROLLOUTS = {
    "group": [0, 0, 1],
    "rewards": [1.0, 0.0, 1.0],
    "rewards_2": [0.5, 0.5, 0.0],
    "logp_new": [[-1.0, -2.0], [-3.0], [-1.0]],
    "logp_old": [[-1.5, -2.0], [-2.0], [-1.0]],
    "entropy": [[0.5, 0.6], [0.7], [0.8]],
}
WHOLE_STEP = """
@hookimpl
def posttrain_advantages(rewards, rollouts, state):
    known = torch.tensor([state.get("history", {}).get(prompt, {"mean": 0.0})["mean"] for prompt in rollouts.prompts])
    shown = torch.tensor([float(who == "data") for who in rollouts.source])
    others = sum(rollouts.reward_parts.values()) - rewards
    return rewards - known + 10 * shown + 100 * others + 1000 * rollouts.old("entropy").sum(1)

@hookimpl
def posttrain_annotate(examples, models):
    sequences = [example.sequences["completion"][0] for example in examples]
    moved = [
        (now - sequence.per_token["old_logps"]).sum() for now, sequence in zip(models.logps(sequences), sequences)
    ]
    worth = torch.tensor([example.columns["advantages"] for example in examples])
    return {"pulled": torch.stack(moved) * worth}

@hookimpl
def posttrain_loss(batch, policy):
    return batch.pulled + 0 * policy.completion.sum
"""


def test_what_hooks_of_a_whole_step_are_given(plugin, file):
    """A hyper-parameter that is an input, one that is known of each prompt, parts of the reward, who answered, the
    entropy before the update; and advantages and old log-probs where the step is annotated. Worked out by hand."""
    entry = {
        "inputs": ROLLOUTS,
        "hyperparameters": {
            "rewards_override": [0.0, 1.0, 1.0],
            "history": {"mean": 0.25},
            "off_policy_seq": [0, 1, 0],
        },
        "advantages": [-0.25 + 50 + 1100, 0.75 + 10 + 50 + 700, 0.75 + 800],
        "loss": (0.5 * 1149.75 - 760.75) / 3,
    }
    mapping = 'rewards_override = "@rewards"\nhistory = "@history"\noff_policy_seq = "@off_policy_seq"'
    folder = plugin(WHOLE_STEP, mapping, '["generation", "rewards"]', "prompt")
    (result,) = evaluate(file({"squares": entry}), folders=[folder])
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages"]
    entry["advantages"] = [[1149.75, 1149.75], [760.75], [800.75]]  # one for all tokens of a row
    (result,) = evaluate(file({"squares": entry}), folders=[folder])
    assert result.status == "equal", result.line()
    del entry["hyperparameters"]["history"]
    (result,) = evaluate(file({"squares": entry}), folders=[folder])
    assert result.status == "differs"


def test_demonstrations_stand_behind_the_policys_own_completions():
    """One a prompt, made by the data, scored by nobody, with a probability that has a gradient."""
    inputs = read_inputs({**ROLLOUTS, "data_logp": [[-0.4, -1.0], [-0.3]], "lengths": [2, 1, 1]}, reward_head=False)
    rollouts, statistics = rollouts_of(inputs), given_statistics(inputs)["completion"]
    view = views_of(inputs, "policy", {"completion": statistics}).completion
    assert view.logps.tolist() == [[-1, -2], [-3, 0], [-1, 0], [-0.4, -1], [-0.3, 0]]
    assert rollouts.source == ["policy", "policy", "policy", "data", "data"]
    assert rollouts.group.tolist() == [0, 0, 1, 0, 1]
    assert [math.isnan(one) for one in inputs.others["rewards"]] == [False, False, False, True, True]
    assert rollouts.old_logps[3:].tolist() == [[-0.4, -1], [-0.3, 0]]
    assert statistics["entropy"].tolist() == [[0.5, 0.6], [0.7, 0], [0.8, 0], [0, 0], [0, 0]]
    view.logps.sum().backward()
    assert inputs.leaves["data_logp"].grad.tolist() == [[1, 1], [1, 1]]


def test_rows_that_a_method_leaves_out_are_left_out_of_its_entry(plugin, tmp_path):
    """Of scores 1 and 3 the method keeps those above 2: the second row, whose mean is 5."""
    hooks = """
@hookimpl
def posttrain_rows(rows):
    return [row for row in rows if row["score"] > 2]

@hookimpl
def posttrain_loss(policy):
    return -policy.completion.mean
"""
    entry = {"inputs": {"policy_tok": [[-1.0], [-4.0, -6.0]], "scores": [1.0, 3.0]}, "hyperparameters": {}, "loss": 5.0}
    (tmp_path / "file.json").write_text(json.dumps({"squares": entry}))
    (result,) = evaluate(tmp_path / "file.json", None, [plugin(hooks, 'scores = "score"', "[]", "scored")])
    assert result.status == "equal", result.line()

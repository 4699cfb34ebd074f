"""Goldens of methods that choose among rollouts, pair them or train modules of their own: numbers worked by hand."""

import json

import pytest
from posttrain_testkit.goldens.compare import evaluate

CARD = """
name = "choosy"
version = "0.1.0"
tier = "experimental"
summary = "A method that nobody has heard of."
schema = "prompt"
needs = ["generation", "rewards", "reference"]
pairs = {pairs}
requires = ["posttrain>=0.1,<1"]
[goldens]
{goldens}
"""
MODULE = '''
"""A method that nobody has heard of."""
from dataclasses import dataclass, replace
import torch
from posttrain import Selection, hookimpl

@dataclass(frozen=True)
class Config:
    """Options."""

    eta: float = 1.0
    """A number."""

'''
ROLLOUTS = {
    "group": [0, 0, 0],
    "rewards": [1.0, 0.0, 5.0],
    "logp_new": [[-1.0, -2.0], [-3.0], [-4.0]],
    "logp_ref": [[-1.0, -1.0], [-1.0], [-1.0]],
    "logp_old": [[-1.5, -2.5], [-2.0], [-4.5]],
}


@pytest.fixture
def found(tmp_path):
    """Evaluate one entry with a method of these hooks."""

    def evaluate_with(hooks, entry, goldens="", pairs=False):
        package = tmp_path / "choosy" / "posttrain_method_choosy"
        package.mkdir(parents=True, exist_ok=True)
        (package / "method.toml").write_text(CARD.format(goldens=goldens, pairs=str(pairs).lower()))
        (package / "__init__.py").write_text(MODULE + hooks)
        file = tmp_path / "goldens.json"
        file.write_text(json.dumps({"choosy": entry}))
        (result,) = evaluate(file, folders=[str(package.parent)])
        return result

    return evaluate_with


SELECTING = """
@hookimpl
def posttrain_select(rollouts, rewards):
    kept = [item for item, reward in zip(rollouts.items, rewards.tolist()) if reward > 0]
    return Selection([replace(item, columns=item.columns | {"best": float(rewards.max())}) for item in kept[::-1]])

@hookimpl
def posttrain_advantages(rewards, rollouts):
    return rewards - torch.tensor(rollouts.columns["best"])

@hookimpl
def posttrain_loss(batch, policy):
    return -batch.advantages * policy.completion.sum
"""


def test_rows_that_are_chosen_are_compared_and_the_gradient_stays_whole(found):
    """Rows 2 and 0 are kept, worth 5 - 5 and 1 - 5: the loss is (0 + 4 * -3) / 2, its gradient 2 at row 0 alone."""
    entry = {
        "inputs": ROLLOUTS,
        "selected": [2, 0],
        "advantages": [-4.0, 99.0, 0.0],
        "loss": -6.0,
        "grad_logp_new": [[2.0, 2.0], [0.0], [0.0]],
    }
    result = found(SELECTING, entry)
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["selected", "loss", "advantages", "grad_logp_new"]
    assert found(SELECTING, entry | {"selected": [0, 2]}).status == "differs"
    assert found(SELECTING, entry | {"advantages": [4.0, 99.0, 0.0]}).status == "differs"


PAIRING = """
@hookimpl
def posttrain_select(rollouts, rewards):
    groups = rollouts.group.unique().tolist()
    pairs = [tuple((rollouts.group == group).nonzero()[:, 0].tolist()) for group in groups]
    pairs = [(a, b) if rewards[a] >= rewards[b] else (b, a) for a, b in pairs]
    old = rollouts.old_logps.sum(1)
    return Selection(pairs=pairs, columns={"old": torch.tensor([float(old[a] - old[b]) for a, b in pairs])})

@hookimpl
def posttrain_loss(batch, policy, config):
    return (policy.chosen.sum - policy.rejected.sum - batch.old) * config.eta
"""
ANSWERS = {
    "logp_new": [[-3.0, -4.0], [-2.0, -5.0]],
    "logp_old": [[-3.5, -4.0], [-2.0, -6.0]],
    "lengths": [[1, 2], [3, 1]],
    "scores": [[1, 0], [0, 1]],
}


def test_pairs_are_made_of_the_files_own_log_probs(found):
    """Margins 1 and -3, before the update 0.5 and -4: (0.5 + 1) / 2. The first answer wins, then the second."""
    entry = {"inputs": ANSWERS, "advantages": [1.0, -1.0], "loss": 0.75}
    result = found(PAIRING, entry, pairs=True)
    assert result.status == "equal", result.line()
    assert [one.quantity for one in result.comparisons] == ["loss", "advantages"]


def test_an_inverse_and_advantages_that_mean_something_else(found):
    """beta 0.25 is eta 4. What the file calls advantages is named as not compared, not passed over."""
    entry = {"inputs": ANSWERS, "hyperparameters": {"beta": 0.25}, "advantages": [7.0, 7.0], "loss": 3.0}
    result = found(PAIRING, entry, 'beta = "1/eta"\nadvantages = "="', pairs=True)
    assert result.status == "equal", result.line()
    assert result.not_compared == ["advantages"]


def test_numbers_of_two_answers_are_columns_of_the_better_and_the_other_one(found):
    hooks = "@hookimpl\ndef posttrain_loss(batch, policy):\n    return batch.chosen_odds - 10 * batch.rejected_odds\n"
    entry = {"inputs": ANSWERS | {"odds": [[0.7, 0.3], [0.4, 0.6]]}, "loss": (0.7 - 3 + 0.6 - 4) / 2}
    assert found(PAIRING[: PAIRING.index("@hookimpl\ndef posttrain_loss")] + hooks, entry, pairs=True).status == "equal"


ROWS = """
@hookimpl
def posttrain_loss(batch, policy, reference):
    margin = policy.chosen.sum - policy.rejected.sum - reference.chosen.sum + reference.rejected.sum
    return margin * (batch.chosen_rewards - batch.rejected_rewards)
"""


def test_pairs_that_are_rows_of_the_file(found):
    """Rows 2 and 1: margin -4 + 3 + 1 - 1, rewards 5 apart. Named by a hyper-parameter, or two by two."""
    entry = {
        "inputs": ROLLOUTS,
        "hyperparameters": {"pairs": [[2, 1]]},
        "loss": -5.0,
        "grad_logp_new": [[0.0, 0.0], [-5.0], [5.0]],
    }
    result = found(ROWS, entry, 'pairs = "@pairs"', pairs=True)
    assert result.status == "equal", result.line()
    answers = {"policy_logp": [-10.0, -12.0], "ref_logp": [-11.0, -11.5], "lengths": [4, 5], "scores": [1.0, 0.2]}
    result = found(ROWS, {"inputs": answers, "loss": 1.5 * 0.8}, 'scores = "rewards"', pairs=True)
    assert result.status == "equal", result.line()


MODULES = """
@hookimpl
def posttrain_extra_modules(hidden_size):
    return {"value": torch.nn.Linear(hidden_size, 1)}

@hookimpl
def posttrain_advantages(rewards, rollouts):
    return rewards + rollouts.old("doubt").sum(1)

@hookimpl
def posttrain_loss(batch, policy):
    mine = torch.tensor([float(who == "policy") for who in batch.source])
    return batch.advantages - policy.completion.value[:, 0] + 100 * mine
"""


def test_one_number_a_prompt_or_a_completion_is_that_of_all_its_tokens(found):
    """The value 0.5 of the prompt; doubts 0.1, 0.2, 0.3 on 2, 1 and 1 tokens; and who answered, from the card."""
    entry = {
        "inputs": ROLLOUTS | {"doubt": [0.1, 0.2, 0.3]},
        "hyperparameters": {"value_of_prompt": [0.5]},
        "advantages": [1.2, 0.2, 5.3],
        "loss": (6.7 - 1.5 + 100) / 3,
    }
    goldens = 'value_of_prompt = "@value"\ncolumns = { source = ["teacher", "policy", "teacher"] }'
    result = found(MODULES, entry, goldens)
    assert result.status == "equal", result.line()


def test_answers_without_groups_are_each_alone(found):
    hooks = """
@hookimpl
def posttrain_advantages(rewards, rollouts):
    return rewards + 10 * rollouts.group

@hookimpl
def posttrain_loss(batch, policy):
    return batch.advantages + 0 * policy.completion.sum
"""
    entry = {"inputs": {"policy_logp": [-1.0, -2.0], "scores": [0.5, 0.25]}, "loss": (0.5 + 10.25) / 2}
    assert found(hooks, entry, 'scores = "rewards"').status == "equal"


def test_an_entry_of_one_schema_may_have_other_options(found):
    """eta 3 where the entry says that it is of scored rows, 1 elsewhere."""
    hooks = "@hookimpl\ndef posttrain_loss(policy, config):\n    return config.eta * policy.completion.sum\n"
    goldens = '[goldens.entries]\n"choosy@scored" = { eta = 3.0 }'
    entry = {"inputs": {"policy_logp": [-1.0, -2.0]}, "loss": -4.5, "schema": "scored"}
    assert found(hooks, entry, goldens).status == "equal"
    assert found(hooks, entry | {"schema": "prompt", "loss": -1.5}, goldens).status == "equal"

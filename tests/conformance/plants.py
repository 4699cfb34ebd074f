"""Small good methods, and for each check a way to break one of them: the plant that the check must catch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HEAD = '''"""A method for the tests of the kit.

Paper: none.
Differs from the paper: nothing.
Metrics:
- margin: how far apart the answers are.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.1
    """Weight."""
    kind: Literal["smooth", "square"] = "smooth"
    """Form of the loss."""
'''

PAIR = (
    HEAD
    + '''

@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Log-sigmoid of the margin."""
    margin = policy.chosen.sum - policy.rejected.sum - (reference.chosen.sum - reference.rejected.sum)  # (B,)
    loss = -F.logsigmoid(config.beta * margin)
    if config.kind == "square":
        loss = (config.beta * margin - 1) ** 2
    return loss, {"margin": margin.detach()}
'''
)

TOKENS = (
    HEAD
    + '''

@hookimpl
def posttrain_token_statistics(logits):
    """The likeliest token's log-probability."""
    best = logits.log_softmax(-1).amax(-1)
    return {"best": best}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Negative log-likelihood."""
    view = policy.completion
    loss = -view.logps - config.beta * view.best
    return PerToken(loss, view.mask), {"margin": PerToken(loss.detach(), view.mask)}
'''
)

LABELS = (
    HEAD
    + '''

@hookimpl
def posttrain_loss(batch, policy, config):
    """Log-sigmoid of the answer's likelihood, up for good ones and down for bad ones."""
    sign = torch.where(batch.label, 1.0, -1.0).to(policy.completion.logps.dtype)  # (B,)
    loss = -F.logsigmoid(config.beta * sign * policy.completion.mean)
    return loss, {"margin": (sign * policy.completion.mean).detach()}
'''
)

ONLINE = (
    HEAD
    + '''

@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """Reward less the mean of its group."""
    advantages = torch.zeros_like(rewards)
    for one in rollouts.group.unique():
        rows = rollouts.group == one
        advantages[rows] = rewards[rows] - rewards[rows].mean()
    return advantages


@hookimpl
def posttrain_loss(batch, policy, config):
    """Policy gradient."""
    view = policy.completion
    loss = -batch.advantages * view.mean_of(view.logps)
    return loss, {"margin": loss.detach()}
'''
)

#: Schema -> (its good module, what its card needs).
GOOD = {
    "preference": (PAIR, ["reference"]),
    "prompt-completion": (TOKENS, []),
    "unpaired-preference": (LABELS, []),
    "prompt": (ONLINE, ["generation", "rewards"]),
}


@dataclass(frozen=True)
class Plant:
    """One bug: ``old`` becomes ``new`` in the module of a schema, the card or the project file.

    ``says`` is a piece of the failure's text, so that a check which fails for another reason is seen.
    """

    schema: str
    old: str
    new: str
    says: str
    file: str = "__init__.py"


def write_method(folder: Path, schema: str, plant: Plant | None = None) -> Path:
    """Write a good method of the schema into ``folder``, with the plant's bug where one is given."""
    module, needs = GOOD[schema]
    quoted = ", ".join(f'"{need}"' for need in needs)
    files = {
        "__init__.py": module,
        "method.toml": (
            'name = "planted"\nversion = "0.1.0"\ntier = "experimental"\nsummary = "A method for the tests."\n'
            f'schema = "{schema}"\nneeds = [{quoted}]\nrequires = ["posttrain>=0.1,<1"]\n'
        ),
        "pyproject.toml": (
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n\n'
            '[project]\nname = "posttrain-method-planted"\nversion = "0.1.0"\n\n'
            '[project.entry-points."posttrain.methods"]\nplanted = "posttrain_method_planted"\n'
        ),
    }
    if plant is not None:
        assert plant.old in files[plant.file], f"the plant's text is not in {plant.file}: {plant.old!r}"
        files[plant.file] = files[plant.file].replace(plant.old, plant.new)
    package = folder / "posttrain_method_planted"
    package.mkdir(parents=True)
    for name, text in files.items():
        ((folder if name == "pyproject.toml" else package) / name).write_text(text, encoding="utf-8")
    return folder


_LOSS = "    loss = -F.logsigmoid(config.beta * margin)\n"
_RETURN = '    return loss, {"margin": margin.detach()}\n'
_VERSION = 'version = "0.1.0"'
_LAST = 'requires = ["posttrain>=0.1,<1"]'
_EXTREME = "    loss = -torch.log(torch.sigmoid(config.beta * margin))\n"
_ADVANTAGE = "        advantages[rows] = rewards[rows] - rewards[rows].mean()\n"
_SPREAD = "        advantages[rows] = (rewards[rows] - rewards[rows].mean()) / rewards[rows].std()\n"

STATIC = {
    "check_card_is_valid": Plant("preference", _VERSION, 'version = "new"', "'new' is not a version", "method.toml"),
    "check_waivers_have_reasons": Plant(
        "preference",
        _LAST,
        _LAST + '\n[waivers]\ncheck_loss_is_finite = "later"',
        "gives the reason 'later'",
        "method.toml",
    ),
    "check_names_agree": Plant("preference", _VERSION, 'version = "0.2.0"', "'0.2.0'", "pyproject.toml"),
    "check_card_is_in_the_wheel": Plant(
        "preference",
        "[project]",
        '[tool.hatch.build]\nexclude = ["*.toml"]\n\n[project]',
        "exclude = '*.toml'",
        "pyproject.toml",
    ),
    "check_options_are_documented": Plant("preference", '    """Weight."""\n', "    # Weight.\n", "'beta'"),
    "check_options_do_not_clash": Plant(
        "preference", "    beta: float", "    lora_rank: int = 1\n    beta: float", "lora"
    ),
    "check_docstring_has_its_sections": Plant("preference", "Metrics:", "Numbers:", "no section 'Metrics:'"),
    "check_imports_are_declared": Plant(
        "preference", "import torch\n", "import posttrain_method_dpo\nimport torch\n", "imports the method"
    ),
    "check_module_is_within_budget": Plant("preference", _LOSS, _LOSS + "    # …\n" * 70, "the budget is 60"),
    "check_import_does_nothing": Plant(
        "preference", "@dataclass(frozen", "torch.manual_seed(0)\n\n\n@dataclass(frozen", "torch.manual_seed(0)"
    ),
    "check_hooks_are_known": Plant(
        "preference", "(batch, policy, reference, config)", "(batch, policy, reference, config, beta)", "takes 'beta'"
    ),
}

LOSS = {
    "check_loss_is_unreduced": Plant("preference", _RETURN, _RETURN.replace("loss,", "loss.mean(),"), "of shape ()"),
    "check_loss_is_finite": Plant("preference", _LOSS, _LOSS.replace("-F", "torch.log(margin - 1e6) - F"), "nan"),
    "check_gradient_reaches_policy": Plant(
        "preference", "- policy.rejected.sum", "- policy.rejected.sum.detach()", "policy.rejected is 0"
    ),
    "check_reference_gets_no_gradient": Plant(
        "preference",
        "    margin =",
        "    reference.chosen.logps.requires_grad_()\n    margin =",
        "reference.chosen.logps",
    ),
    "check_reference_is_used": Plant(
        "preference", "(reference.chosen.sum - reference.rejected.sum)", "0.0", "two different references"
    ),
    "check_gradient_equals_finite_differences": Plant(
        "preference", _LOSS, _LOSS.replace("-F", "-margin.detach() * F"), "the loss rises by"
    ),
    "check_same_inputs_same_bits": Plant(
        "preference", _LOSS, _LOSS + "    loss = loss * (1 + 1e-3 * torch.rand(()))\n", "and then"
    ),
    "check_random_state_is_untouched": Plant(
        "preference", _LOSS, _LOSS + "    torch.rand(3)\n", "random state of torch"
    ),
    "check_inputs_are_unchanged": Plant(
        "preference", "    margin =", "    reference.chosen.logps.mul_(0.5)\n    margin =", "reference.chosen.logps"
    ),
    "check_every_choice_works": Plant(
        "preference", "(config.beta * margin - 1) ** 2", "(margin * float('inf')) ** 2", "kind = 'square'"
    ),
    "check_bfloat16_is_close": Plant("preference", _LOSS, _LOSS + "    loss = (loss + 1000) - 1000\n", "in bfloat16"),
    "check_metrics_are_detached": Plant("preference", "margin.detach()", "margin", "'margin' requires"),
    "check_metrics_are_unreduced": Plant("preference", "margin.detach()", "margin.detach().mean()", "shape ()"),
    "check_metrics_have_stable_names": Plant(
        "unpaired-preference",
        '    return loss, {"margin"',
        '    if not batch.label.all():\n        return loss, {}\n    return loss, {"margin"',
        "differ between",
    ),
    "check_metrics_are_documented": Plant("preference", '{"margin"', '{"spread"', "'spread' is not in"),
    "check_split_does_not_matter": Plant(
        "preference", _LOSS, _LOSS + "    loss = loss - loss.mean() ** 2\n", "micro-batches"
    ),
    "check_rank_does_not_matter": Plant(
        "preference", _LOSS, _LOSS + '    loss = loss / int(__import__("os").environ.get("WORLD_SIZE", 1))\n', "ranks"
    ),
    "check_order_does_not_matter": Plant(
        "preference", _LOSS, _LOSS + "    loss = loss * loss.roll(1)\n", "in the order"
    ),
    "check_padding_does_not_matter": Plant(
        "prompt-completion", "-view.logps -", "-view.logps.mean(-1, keepdim=True) -", "pad columns"
    ),
    "check_packing_does_not_matter": Plant(
        "prompt-completion", ".amax(-1)\n", ".amax(-1)\n    best = best - best.max()\n", "chunks"
    ),
    "check_metrics_ignore_the_layout": Plant(
        "preference", "margin.detach()", "policy.chosen.logps.detach().mean(-1)", "metric 'margin' went"
    ),
    "check_one_example_works": Plant(
        "preference", _LOSS, _LOSS + "    loss = loss / loss.detach().std()\n", "of one example"
    ),
    "check_one_token_works": Plant(
        "preference", _LOSS, _LOSS + "    loss = loss / (policy.chosen.lengths - 1)\n", "one-token"
    ),
    "check_equal_labels_work": Plant(
        "unpaired-preference", "    loss =", "    sign = sign / (~batch.label).sum()\n    loss =", "all good"
    ),
    "check_equal_answers_work": Plant(
        "preference", _LOSS, _LOSS + "    loss = loss * margin.abs().sqrt()\n", "equal answers"
    ),
    "check_empty_answers_work": Plant(
        "preference", _LOSS, _LOSS + "    loss = loss / policy.chosen.lengths\n", "without trained tokens"
    ),
    "check_extreme_values_work": Plant("preference", _LOSS, _EXTREME, "±100"),
    "check_dtype_is_kept": Plant(
        "preference", "config.beta * margin)\n", "config.beta * margin.float())\n", "torch.float32"
    ),
    "check_advantages_have_a_unit": Plant("prompt", _ADVANTAGE, _SPREAD, "groups of [1, 1]"),
    "check_equal_rewards_teach_nothing": Plant("prompt", " - rewards[rows].mean()", "", "gave an advantage of 1"),
    "check_better_rewards_are_worth_more": Plant(
        "prompt", "rewards[rows] - rewards[rows].mean()", "rewards[rows].mean() - rewards[rows]", "gave advantages"
    ),
    "check_advantages_follow_the_order": Plant(
        "prompt", "    return advantages\n", "    return advantages - advantages[:1]\n", "in the order"
    ),
    "check_advantages_ignore_padding": Plant(
        "prompt", "    return advantages\n", "    return advantages + rollouts.old_logps.mean(-1)\n", "pad columns"
    ),
}

_CALLS = "    posttrain_loss.calls = getattr(posttrain_loss, 'calls', 0) + 1\n    loss = loss * posttrain_loss.calls\n"
_NOISE = '    loss = loss * (1 + __import__("random").SystemRandom().random())\n'
_SIGN = _LOSS.replace("config.beta", "-config.beta")

TRAINING = {
    "check_promise_holds": Plant("preference", _LOSS, _SIGN, "margin of the right answers"),
    "check_promise_holds_with_lora": Plant("preference", _LOSS, _SIGN, "margin of the right answers"),
    "check_same_seed_same_bits": Plant("preference", _LOSS, _LOSS + _NOISE, "in a second run with the same seed"),
    "check_resume_equals_uninterrupted": Plant("preference", _LOSS, _LOSS + _CALLS, "Step 9: loss"),
    "check_accumulation_does_not_matter": Plant(
        "preference", _LOSS, _LOSS + "    loss = loss - 0.1 * loss.mean() ** 2\n", "with micro-batches of one example"
    ),
    "check_layout_does_not_matter": Plant(
        "preference", _LOSS, _LOSS + "    loss = loss * policy.chosen.sum.roll(1)\n", "without packing"
    ),
    "check_evaluation_does_not_matter": Plant(
        "preference", _LOSS, _LOSS + "    loss = loss * (1 + torch.rand(()))\n", "with an evaluation after each step"
    ),
}

_SORTED = "    margin = policy.chosen.sum.sort().values - policy.rejected.sum.sort().values\n"
_NLL = """\
    nll = -policy.chosen.sum.sum() / policy.chosen.lengths.sum()
    loss = {"preference": loss, "nll": nll.expand(batch.size)}
"""

#: Further bugs that trainers of this field have shipped (trap ids), with the check that must see them.
SHIPPED = {
    "S6-nll-term-per-micro-batch": (
        "check_split_does_not_matter",
        Plant("preference", _LOSS, _LOSS + _NLL, "micro-batches"),
    ),
    "S7-sort-inside-micro-batch": (
        "check_split_does_not_matter",
        Plant("preference", _LOSS, _SORTED + _LOSS, "micro-batches"),
    ),
    "P1-baseline-from-neighbours": (
        "check_split_does_not_matter",
        Plant(
            "unpaired-preference",
            "policy.completion.mean)\n",
            "(policy.completion.mean - policy.completion.mean.roll(1).detach()))\n",
            "micro-batches",
        ),
    ),
    "S1-divided-by-micro-batch-size": (
        "check_split_does_not_matter",
        Plant("preference", _LOSS, _LOSS + "    loss = loss / batch.size\n", "micro-batches"),
    ),
    "M3-padding-in-the-likelihood": (
        "check_padding_does_not_matter",
        Plant("preference", _LOSS, _LOSS + "    loss = loss - policy.chosen.logps.mean(-1)\n", "pad columns"),
    ),
    "S8-nothing-trained": (
        "check_empty_answers_work",
        Plant(
            "unpaired-preference",
            "policy.completion.mean)\n",
            "policy.completion.sum / policy.completion.lengths)\n",
            "without",
        ),
    ),
    "G10-equal-rewards": (
        "check_equal_rewards_teach_nothing",
        Plant("prompt", _ADVANTAGE, _SPREAD, "rewards that are all"),
    ),
    "P5-choice-that-raises": (
        "check_every_choice_works",
        Plant(
            "preference",
            "        loss = (config.beta * margin - 1) ** 2\n",
            '        raise KeyError("square")\n',
            "KeyError: 'square'",
        ),
    ),
    "dropout-in-the-loss": (
        "check_same_inputs_same_bits",
        Plant("preference", _LOSS, _LOSS + "    loss = F.dropout(loss, 0.5)\n", "and then"),
    ),
    "G6-groups-taken-for-sorted": (
        "check_advantages_follow_the_order",
        Plant(
            "prompt",
            "    for one in rollouts",
            "    rollouts.group[:] = rollouts.group.sort().values\n    for one in rollouts",
            "in the order",
        ),
    ),
}

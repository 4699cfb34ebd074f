"""A real, minimal method for each schema: the start of ``posttrain new --schema``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Loss:
    """Parts of a new method's module and test that depend on the schema."""

    words: str
    metrics: str
    options: str
    hooks: str
    test: str
    imports: str = "\nfrom posttrain import PerToken, hookimpl\n"
    needs: str = ""


_BETA = """\
    beta: float = {value}
    \"\"\"{meaning}\"\"\"
"""

_LIKELIHOOD = Loss(
    words="negative log-probability of each trained token, times ``scale``.",
    metrics="- nll: negative log-probability of a token. Falls.",
    options=_BETA.format(value=1.0, meaning="Factor of the loss.").replace("beta", "scale"),
    hooks='''\
@hookimpl
def posttrain_loss(policy, config):
    """Negative log-likelihood of the completion."""
    completion = policy.completion
    nll = PerToken(-completion.logps, completion.mask)  # (B, T)
    return PerToken(config.scale * nll.values, nll.mask), {"nll": PerToken(nll.values.detach(), nll.mask)}
''',
    test="""\
import pytest


def test_loss_is_the_negative_log_probability(loss_of):
    # the tokens cost 1 and 3, on average 2; twice that, and each has half of the gradient
    found = loss_of({"policy_tok": [[-1.0, -3.0]]}, scale=2.0)
    assert found.loss == 4
    assert found.gradients["policy_tok"] == [[-1, -1]]


def test_gradient_equals_finite_differences(gradcheck):
    gradcheck({"policy_tok": [[-1.0, -3.0], [-2.0]]})


def test_unknown_option_is_an_error(method):
    with pytest.raises(Exception, match="Did you mean 'scale'"):
        method.config({"scal": 1.0})
""",
)

_PREFERENCE = Loss(
    words="negative log-sigmoid of how much likelier a token of the chosen answer is than one of the rejected answer.",
    metrics="- margin: mean log-probability of the chosen answer minus that of the rejected one. Rises.\n"
    "- accuracy: share of pairs with a positive margin. Rises towards 1.",
    options=_BETA.format(value=2.0, meaning="How sharply pairs are told apart."),
    imports="\nfrom posttrain import hookimpl\nfrom torch.nn.functional import logsigmoid\n",
    hooks='''\
@hookimpl
def posttrain_loss(policy, config):
    """Logistic loss of the difference of mean log-probabilities."""
    margin = policy.chosen.mean - policy.rejected.mean  # (B,)
    loss = -logsigmoid(config.beta * margin)
    return loss, {"margin": margin.detach(), "accuracy": (margin > 0).to(margin.dtype)}
''',
    test="""\
import math

import pytest

PAIR = {"policy_chosen_tok": [[-0.5, -1.5]], "policy_rejected_tok": [[-2.0]]}


def test_loss_of_a_pair(loss_of):
    # means -1 and -2: the margin is 1, the loss -log(sigmoid(2)) = log(1 + e^-2)
    found = loss_of(PAIR)
    assert found.loss == pytest.approx(math.log(1 + math.exp(-2)))
    assert found.metrics["margin"].tolist() == [1]


def test_gradient_equals_finite_differences(gradcheck):
    gradcheck(PAIR)
""",
)

_UNPAIRED = Loss(
    words="negative log-sigmoid of the answer's log-ratio to the reference, with its sign turned for bad answers.",
    metrics="- margin: log-ratio to the reference, positive where it went the way the label says. Rises from 0.",
    options=_BETA.format(value=0.1, meaning="Strength of the pull towards the reference."),
    imports="\nfrom posttrain import hookimpl\nfrom torch.nn.functional import logsigmoid\n",
    needs='needs = ["reference"]\n',
    hooks='''\
@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Logistic loss of the signed log-ratio."""
    sign = 2 * batch.label.to(policy.completion.logps.dtype) - 1  # (B,) 1 for good, -1 for bad
    margin = sign * (policy.completion.sum - reference.completion.sum)
    return -logsigmoid(config.beta * margin), {"margin": margin.detach()}
''',
    test="""\
import math

import pytest


@pytest.mark.parametrize(("label", "sign"), [(True, 1), (False, -1)])
def test_loss_of_a_good_and_a_bad_answer(loss_of, gradcheck, label, sign):
    # the policy is e^2 times likelier than the reference: -log(sigmoid(2)) and -log(sigmoid(-2))
    answer = {"policy_tok": [[-1.0, -1.0]], "ref_tok": [[-2.0, -2.0]], "label": [label]}
    assert loss_of(answer, beta=1.0).loss == pytest.approx(math.log(1 + math.exp(-2 * sign)))
    gradcheck(answer)
""",
)

_SCORED = Loss(
    words="negative log-probability of each token, times the row's score.",
    metrics="- nll: negative log-probability of a token, scores left out. Falls.",
    options=_BETA.format(value=1.0, meaning="Power of the score.").replace("beta", "power"),
    hooks='''\
@hookimpl
def posttrain_loss(batch, policy, config):
    """Likelihood weighted by the score."""
    completion = policy.completion
    weight = batch.score.to(completion.logps.dtype).clamp(min=0) ** config.power  # (B,)
    loss = PerToken(-weight[:, None] * completion.logps, completion.mask)  # (B, T)
    return loss, {"nll": PerToken(-completion.logps.detach(), completion.mask)}
''',
    test="""\
import pytest


def test_score_weighs_the_likelihood(loss_of):
    # 0.5 squared of the tokens' 1 and 3, on average 0.5
    found = loss_of({"policy_tok": [[-1.0, -3.0]], "score": [0.5]}, power=2.0)
    assert found.loss == 0.5
    assert found.gradients["policy_tok"] == [[-0.125, -0.125]]


def test_unknown_option_is_an_error(method):
    with pytest.raises(Exception, match="Did you mean 'power'"):
        method.config({"powr": 1.0})
""",
)

_FORGET = Loss(
    words="likelihood of what shall be retained, and a logistic bound against what shall be forgotten.",
    metrics="- forgotten: log-ratio to the reference on what shall be forgotten. Falls from 0.\n"
    "- retained: negative log-probability of a token that shall be retained. Stays.",
    options=_BETA.format(value=0.1, meaning="How soon an answer counts as forgotten."),
    imports="\nfrom posttrain import PerToken, hookimpl\nfrom torch.nn.functional import logsigmoid\n",
    needs='needs = ["reference"]\n',
    hooks='''\
@hookimpl
def posttrain_loss(policy, reference, config):
    """A negative preference for what to forget, likelihood for what to retain."""
    ratio = policy.forget.sum - reference.forget.sum  # (B,)
    nll = PerToken(-policy.retain.logps, policy.retain.mask)  # (B, T)
    loss = {"forget": -2 / config.beta * logsigmoid(-config.beta * ratio), "retain": nll}
    return loss, {"forgotten": ratio.detach(), "retained": PerToken(nll.values.detach(), nll.mask)}
''',
    test="""\
import math

import pytest

START = {"policy_forget_tok": [[-1.0, -1.0]], "ref_forget_tok": [[-1.0, -1.0]], "policy_retain_tok": [[-3.0]]}


def test_loss_at_the_first_step(loss_of):
    # no difference from the reference: -(2 / 0.5) * log(sigmoid(0)) = 4 ln 2; and 3 for what to retain
    assert loss_of(START, beta=0.5).loss == pytest.approx(4 * math.log(2) + 3)


def test_gradient_equals_finite_differences(gradcheck):
    gradcheck(START)
""",
)

_ONLINE = Loss(
    words="probability of each token relative to the sampling policy, times how much better its completion did than\n"
    "its group; clipped.",
    metrics="- ratio: probability relative to the sampling policy. 1 in the first update of a batch.",
    options=_BETA.format(value=0.2, meaning="How far the ratio may leave 1 before it is clipped.").replace(
        "beta", "epsilon"
    ),
    imports="\nimport torch\nfrom posttrain import PerToken, hookimpl, tensors\n",
    needs='needs = ["generation", "rewards"]\n',
    hooks='''\
@hookimpl
def posttrain_advantages(rewards, rollouts):
    """Reward minus the mean of its group: (B,); 0 for a completion that no reward judged."""
    return (rewards - tensors.group_mean(rewards, rollouts.group)).nan_to_num()


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient."""
    completion = policy.completion
    ratio = (completion.logps - batch.old_logps).exp()  # (B, T)
    advantages = batch.advantages[:, None]  # (B, 1)
    clipped = ratio.clamp(1 - config.epsilon, 1 + config.epsilon)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    return PerToken(loss, completion.mask), {"ratio": PerToken(ratio.detach(), completion.mask)}
''',
    test="""\
import pytest


def test_advantage_is_the_distance_from_the_group(advantages_of):
    found, _ = advantages_of([1.0, 0.0, 3.0, 3.0], [0, 0, 1, 1])
    assert found.tolist() == [0.5, -0.5, 0, 0]


def test_ratio_is_clipped(loss_of):
    # old log-prob -1, new -0.5: the ratio e^0.5 = 1.65 is clipped to 1.2, times the advantage 2
    found = loss_of({"logp_new": [[-0.5]], "logp_old": [[-1.0]], "advantages": [2.0]})
    assert found.loss == pytest.approx(-2.4)


def test_gradient_equals_finite_differences(gradcheck):
    gradcheck({"logp_new": [[-1.1, -0.9]], "logp_old": [[-1.0, -1.0]], "advantages": [2.0]})
""",
)

LOSSES: dict[str, Loss] = {
    "language-modeling": _LIKELIHOOD,
    "prompt-completion": _LIKELIHOOD,
    "trajectory": _LIKELIHOOD,
    "preference": _PREFERENCE,
    "unpaired-preference": _UNPAIRED,
    "scored": _SCORED,
    "forget-retain": _FORGET,
    "prompt": _ONLINE,
}

#: Start of ``posttrain new --modifier``.
MODIFIER = Loss(
    words="the clipped policy gradient of the method that it modifies, times a weight that falls with a completion's\n"
    "length. Trained alone it modifies group-normalised advantages.",
    metrics="- weight: of a completion. 1 for a single token.\n"
    "- ratio, clip_low, clip_high, advantage_size: as in the method that it modifies.",
    options=_BETA.format(value=0.5, meaning="Power of the length.").replace("beta", "power"),
    imports="\nfrom posttrain import hookimpl\n",
    needs='needs = ["generation", "rewards"]\nmodifier = true\n',
    hooks='''\
@hookimpl
def posttrain_token_weights(policy, config):
    """Shorter completions count more: (B, 1)."""
    weight = policy.completion.lengths.clamp(min=1) ** -config.power  # (B,)
    return weight[:, None], {"weight": weight}
''',
    test="""\
import pytest


def test_a_completion_of_four_tokens_counts_half(loss_of):
    # ratios of 1 and an advantage of 2: -2 a token, times 4^-0.5
    found = loss_of({"logp_new": [[-1.0] * 4], "logp_old": [[-1.0] * 4], "advantages": [2.0]})
    assert found.loss == pytest.approx(-1.0)
""",
)

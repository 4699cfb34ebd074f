"""A*-PO: the optimal value of a prompt is estimated from the reference; the policy then needs one answer each.

Paper: Brantley et al. 2025, "Accelerating RL for LLM Reasoning with Optimal Advantage Regression", arXiv:2505.20686;
TRL's experimental A2PO trainer.

Loss in words: with a divergence from the reference of weight beta1 the best achievable value of a prompt is known in
closed form, from samples of the reference alone. When a prompt first comes up, the reference answers it value_samples
times; a prompt that it never solves is left out, then and later:

    V* = beta1 * log mean of exp(R / beta1) over the reference's answers
    loss = (beta2 * (log p - log p_ref) - (R - V*))^2   for whole answers of the policy, averaged over answers

The log-ratio of the best policy is the optimal advantage R - V* over beta2.

Differs from the paper: the first stage is done prompt by prompt, as they come up. Where no prompt of a step is ever
solved by the reference, the step is taken on all of them.

Metrics:
- v_star: mean V*. Constant but for the choice of prompts.
- advantage: mean of R - V*. Below 0 at first, rises above it.
- mismatch: mean absolute bracket. Falls.
- kl: log-ratio of an answer to the reference, summed over its tokens. From 0 upwards.
"""

from dataclasses import dataclass, replace

import torch
from posttrain import SampleRequest, Selection, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    beta1: float = 0.5
    """Temperature of the value (the paper)."""
    beta2: float = 1e-3
    """Weight of the log-ratio in the regression (the paper)."""
    value_samples: int = 8
    """Answers of the reference to each prompt (the paper)."""

    def __post_init__(self) -> None:
        if self.beta1 <= 0 or self.value_samples < 1:
            raise ValueError(
                f"beta1 is {self.beta1} and value_samples {self.value_samples}, expected above 0 and at least 1"
            )


@hookimpl
def posttrain_plan_rollouts(prompts, group_size, config, state):
    """The policy answers, and the reference where the prompt is new."""
    known = state.get("prompt_values", {})
    value = SampleRequest(config.value_samples, source="reference")
    return [
        [SampleRequest(group_size)] if str(one.get("prompt")) in known else [SampleRequest(group_size), value]
        for one in prompts
    ]


@hookimpl
def posttrain_select(rollouts, rewards, config, state):
    """Values of new prompts are kept; the policy's answers to prompts that the reference can solve are learnt from."""
    values = state.setdefault("prompt_values", {})
    fresh = _values(rewards, rollouts, config)
    own = [row for row, source in enumerate(rollouts.source) if source != "reference"]
    for row in range(len(rewards)):
        if row not in own:
            solved = bool((rewards[rollouts.group == rollouts.group[row]] > 0).any())
            values[str(rollouts.prompts[row])] = float(fresh[row]) if solved else None
    named = [(rollouts.items[row], str(rollouts.prompts[row])) for row in own]
    known = [(item, values[prompt]) for item, prompt in named if values.get(prompt) is not None]
    if not known:
        return Selection([item for item, _ in named])
    return Selection([replace(item, columns=item.columns | {"v_star": value}) for item, value in known])


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The optimal advantage R - V*: (B,)."""
    given = rollouts.columns.get("v_star", [None] * len(rewards))
    pairs = zip(given, _values(rewards, rollouts, config).tolist(), strict=True)
    v_star = rewards.new_tensor([own if value is None else float(value) for value, own in pairs])
    return {"advantages": (rewards - v_star).nan_to_num(0.0), "v_star": v_star}


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Squared mismatch, one value an answer."""
    view = policy.completion
    log_ratio = view.sum - reference.completion.sum  # (B,)
    mismatch = config.beta2 * log_ratio - batch.advantages
    metrics = {"v_star": batch.v_star, "advantage": batch.advantages, "mismatch": mismatch.detach().abs()}
    return mismatch.square(), metrics | {"kl": log_ratio.detach()}


def _values(rewards: torch.Tensor, rollouts, config: Config) -> torch.Tensor:
    """V* of each one's prompt (B,), from the reference's answers among them; without any the mean of its answers."""
    others = torch.tensor([source == "reference" for source in rollouts.source])
    same = rollouts.group[:, None] == rollouts.group  # (B, B)
    chosen = torch.where((same & others).any(1, keepdim=True), same & others, same) & ~rewards.isnan()
    exponents = torch.where(chosen, rewards / config.beta1, -torch.inf)
    return config.beta1 * (exponents.logsumexp(1) - chosen.sum(1).to(rewards.dtype).log())

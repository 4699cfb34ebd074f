"""RLSD: verified rewards say whether an answer was good, the model's own privileged opinion says which tokens were.

Paper: arXiv:2604.03128 (2026), as implemented in ms-swift (advantage_reweight "rlsd").

Loss in words: a completion's advantage A is its reward less its group's mean, in standard deviations. The same model
reads the completion behind a prompt that also holds the solution (the column privileged_context) and gives its tokens
the log-probabilities q. Where that agrees with the advantage, a token's share is larger, elsewhere smaller, within
bounds that never turn its sign:

    A_t = A * [(1 - mix) + mix * clip(exp(sign(A) (q_t - o_t)), 1 - clip_range, 1 + clip_range)]

and the clipped policy gradient of A_t is averaged over all tokens of the step; o is the student's own log-probability
when it sampled. mix falls by a line to 0 over the run, so that in the end the rewards alone count.

Differs from the paper: the option to reweight bad completions alone is left out.

Metrics:
- advantage: what a token is worth, after the reweighting. Near 0 on average.
- reweight: the bracket. Between 1 - mix * clip_range and 1 + mix * clip_range; 1 everywhere: the context says nothing.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, prompts, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    mix: float = 0.5
    """Share of the privileged opinion at the beginning (ms-swift)."""
    clip_range: float = 0.2
    """How far a token's share may leave 1 (ms-swift)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation."""
    template: str = "{prompt}\n\nHere is a reference solution:\n\n{privileged_context}\n\nSolve it in your own words."
    """What the teacher is asked: {prompt} stands for the prompt (of messages, for what the user says last),
    {privileged_context} for that column of the data."""

    def __post_init__(self) -> None:
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix is {self.mix}, expected a number from 0 to 1")
        prompts.check_template("template", self.template, "prompt", "privileged_context")


@hookimpl
def posttrain_teacher_prompts(rollouts, config):
    """The prompt with what the student does not see."""
    shown = map(prompts.plain_text, rollouts.columns["privileged_context"])
    return [
        prompts.reworded(prompt, config.template, privileged_context=one)
        for prompt, one in zip(rollouts.prompts, shown, strict=True)
    ]


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    rollouts.teacher_logps  # noqa: B018  (read now, so that the loss finds them in its batch)
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config, step):
    """Clipped policy gradient of each token's own advantage."""
    view = policy.completion
    worth = batch.advantages.reshape(len(view.logps), -1)  # (B, 1)
    mix = config.mix * (1 - step.number / max(step.total, 1))
    agreement = tensors.importance_ratio(worth.sign() * (batch.teacher_logps - batch.old_logps))  # (B, T)
    reweight = 1 - mix + mix * agreement.clamp(1 - config.clip_range, 1 + config.clip_range)
    advantages = (worth * reweight).to(view.logps.dtype)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)
    metrics = {
        "advantage": advantages,
        "reweight": reweight,
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}

"""SDAR: policy gradient on rewards, with a self-distillation that trusts the teacher only where it is surer.

Paper: arXiv:2605.15155 (2026), as implemented in ms-swift (sdar_loss_coef).

Loss in words: a completion's advantage is its reward less its group's mean, in standard deviations, with the clipped
policy gradient. The same model, behind a prompt that also holds a hint (the column privileged_context), gives each
token the log-probability q; the gap to the student's own l is a second signal, through a gate that opens where the
informed model is surer than the student, and has no gradient:

    loss = -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A) + coef * sigmoid(gate_beta (q - l)) * (q - l)

averaged over all tokens of the step.

Differs from the paper: one answer a prompt, not episodes in an environment; tokens of tools are left out by the core.

Metrics:
- gap: q - l of a token in nats. Rises towards 0 as the student learns what the hint says.
- gate: how far the gate is open, 0 to 1.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, prompts, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    coef: float = 0.1
    """Weight of the self-distillation (ms-swift; the paper has 0.01 on ALFWorld)."""
    gate_beta: float = 5.0
    """How sharply the gate opens (ms-swift)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation."""
    template: str = "{prompt}\n\nHere is a reference solution:\n\n{privileged_context}\n\nSolve it in your own words."
    """What the teacher is asked: {prompt} stands for the prompt (of messages, for what the user says last),
    {privileged_context} for that column of the data."""

    def __post_init__(self) -> None:
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
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient, and the gated gap to the informed model."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)

    gap = batch.teacher_logps - view.logps  # (B, T)
    gate = (config.gate_beta * gap).sigmoid().detach()
    terms = {"policy": loss, "distillation": config.coef * gate * gap}
    metrics = {"gap": gap.detach(), "gate": gate, "ratio": ratio.detach()}
    terms, metrics = ({name: PerToken(v, view.mask) for name, v in one.items()} for one in (terms, metrics))
    return terms, metrics | {"advantage_size": batch.advantages.abs()}

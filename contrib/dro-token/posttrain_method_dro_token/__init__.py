"""Token-level DRO: a policy gradient with a quadratic penalty on each token's log-ratio, without ratio or clip.

Paper: Richemond et al. 2024, "Offline Regularised Reinforcement Learning for Large Language Models Alignment",
arXiv:2405.19107; this form for each token is that of verl and of Tinker's loss "dro".

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. It multiplies the token's log-probability; half of beta times the squared log-ratio to the policy that
sampled the token is added. The mean is over all tokens of the step:

    loss = -(sum over all tokens of  A log p - beta / 2 (log p - log p_old)^2) / number of tokens

Differs from the paper: that fits whole completions together with a value of the prompt (DRO-V); here each token
stands for itself and the advantage is GRPO's. The standard deviation is the sample's plus ``advantage_epsilon``, as in
TRL and verl.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- drift: mean absolute log-ratio. 0 in the first update of a batch; above 0.5, raise beta.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.05
    """Weight of the squared log-ratio, above 0 (verl)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Advantage times log-probability, and half the squared log-ratio."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    log_ratio = view.logps - batch.old_logps  # (B, T)
    loss = config.beta / 2 * log_ratio.square() - advantages * view.logps  # (B, T)
    metrics = {
        "ratio": tensors.importance_ratio(log_ratio.detach()),
        "drift": log_ratio.detach().abs(),
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}

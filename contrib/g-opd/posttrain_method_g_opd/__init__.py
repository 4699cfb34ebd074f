"""Generalised on-policy distillation: the teacher's gain over a reference is the reward, and may be exaggerated.

Paper: arXiv:2602.12125 (2026), "ExOPD".

Loss in words: on-policy distillation is reinforcement learning whose reward is log q - log f, what the teacher's
probability of a token lies above the reference's, with a divergence from that reference of weight 1. With the reward
multiplied by ``extrapolation``, more than the teacher has learnt is learnt:

    A_t = extrapolation * (log q - log f) - (log s - log f)      held constant
    loss = mean over all tokens of the step of  -exp(log s - log s_old) A_t

At 1 the reference drops out and this is on-policy distillation; below 1 the student stays between the two.

Differs from the paper: its estimator and mean could not be verified; each token answers for itself here, as in
on-policy distillation. --reference-model names what the teacher was before its own training ("reward correction").

Metrics:
- advantage: what a token is worth. Rises towards 0.
- reverse_kl: log-probability of a token under the student less that under the teacher. Falls; with extrapolation above
  1 not to 0.
- kl: log-probability of a token under the student less that under the reference. From 0 upwards.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- entropy: of the student's next-token distribution in nats. Below 0.01 it has collapsed."""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    extrapolation: float = 1.25
    """How much of the teacher's gain is learnt (lambda; the paper: 1.25). 1 is on-policy distillation."""


@hookimpl
def posttrain_advantages(rewards, rollouts):
    """Nothing that the loss could not see; the teacher's log-probs are read."""
    rollouts.teacher_logps  # noqa: B018  (read now, so that the loss finds them in its batch)
    return rewards * 0


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Policy gradient of each token."""
    view, start = policy.completion, reference.completion.logps
    logps = view.logps.detach()  # (B, T)
    advantages = config.extrapolation * (batch.teacher_logps - start) - (logps - start)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)
    metrics = {
        "advantage": advantages,
        "reverse_kl": logps - batch.teacher_logps,
        "kl": logps - start,
        "ratio": ratio.detach(),
    }
    return PerToken(-ratio * advantages, view.mask), {
        name: PerToken(values, view.mask) for name, values in metrics.items()
    }

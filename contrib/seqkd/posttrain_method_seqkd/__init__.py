"""Sequence-level knowledge distillation: the teacher answers the prompts, the student learns those answers.

Paper: Kim and Rush 2016, "Sequence-Level Knowledge Distillation", arXiv:1606.07947, section 3.2.

Loss in words: the divergence of the student's distribution over whole answers from the teacher's has too many terms;
it is replaced by the teacher's own answers. The loss is the negative log-probability of their tokens, averaged over
all tokens of the step:

    loss = -log s(teacher's token)

Differs from the paper: its single answer is the best of a beam search; here it is a sample, or the teacher's likeliest
token at each place (``greedy``). Answers are written while the student trains, each time a prompt comes up, and not
once before; the teacher has to be a local model.

Metrics:
- nll: negative log-probability of the teacher's tokens under the student, in nats. Falls to the teacher's entropy.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's; with greedy answers towards 0.
"""

from dataclasses import dataclass

from posttrain import PerToken, SampleRequest, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    greedy: bool = False
    """Take the teacher's likeliest tokens, one answer a prompt, which comes nearest to the paper's beam search; else
    group-size samples, which keep the variety of what it would say."""


@hookimpl
def posttrain_plan_rollouts(prompts, group_size, config):
    """The teacher answers."""
    ask = (
        SampleRequest(1, source="teacher", greedy=True)
        if config.greedy
        else SampleRequest(group_size, source="teacher")
    )
    return [[ask] for _ in prompts]


@hookimpl
def posttrain_loss(policy):
    """Negative log-probability of the teacher's tokens."""
    view = policy.completion
    metrics = {"nll": -view.logps.detach()}
    return PerToken(-view.logps, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}

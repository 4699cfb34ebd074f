"""Process reward model: a head on the model says of each step of a solution whether it is right.

Papers: Lightman et al. 2023, "Let's Verify Step by Step", arXiv:2305.20050, section 2.5; before it Uesato et al. 2022,
"Solving math word problems with process- and outcome-based feedback", arXiv:2211.14275.

Loss in words: the last token of each step, the one that holds its line break, gets the log-odds that the step is good.
The loss is the cross-entropy with the step's label, averaged over all labelled steps of the batch; no other token
counts. With two classes this is binary cross-entropy of the difference of their logits:

    loss = mean over steps of  -[label log sigmoid(score) + (1 - label) log(1 - sigmoid(score))]

With ``train_on_last_step_only`` only a solution's last step counts, whatever the solution's length: an outcome reward
model (arXiv:2211.14275, ORM).

Differs from the paper: steps have two labels; the paper has a third one, neutral, which it counts as good in its own
use. Labels between 0 and 1, such as the share of continuations that succeed (arXiv:2312.08935), are taken as they are.

The saved model is a transformers token classifier with the labels bad and good; ``--reward FOLDER`` uses it.

Metrics:
- accuracy: share of steps whose label the score's sign tells. Above the larger of positive_share and its complement.
- positive_share: mean label. Far from 0.5, accuracy says little: look at the next two.
- score_good, score_bad: mean log-odds of right and of wrong steps. The first rises above 0, the second falls below: in
  the example to about 2 and -2 (with --steps 150 --learning-rate 1e-3).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    train_on_last_step_only: bool = False
    """Learn from the last step of each solution alone (arXiv:2211.14275: an outcome reward model)."""


@hookimpl
def posttrain_loss(batch, policy, config):
    """Binary cross-entropy at the ends of steps, or one value a solution for its last step."""
    view, ends = policy.completion, batch.step_end  # (B, T)
    label = batch.step_label.to(view.scores.dtype)  # (B, T)
    if config.train_on_last_step_only:
        still_to_come = ends.flip(1).cumsum(1).flip(1)  # (B, T)
        ends = ends & (still_to_come == 1)
    loss = F.binary_cross_entropy_with_logits(view.scores, label, reduction="none")  # (B, T)
    score, good = view.scores.detach(), label > 0.5
    metrics = {
        "accuracy": PerToken(((score > 0) == good).to(score.dtype), ends),
        "positive_share": PerToken(label, ends),
        "score_good": PerToken(score, ends & good),
        "score_bad": PerToken(score, ends & ~good),
    }
    if config.train_on_last_step_only:
        return view.sum_of(torch.where(ends, loss, torch.zeros_like(loss))), metrics
    return PerToken(loss, ends), metrics

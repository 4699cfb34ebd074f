"""Rules about held-out rows: worse than at the start, or worse while the training rows get better."""

from __future__ import annotations

import itertools

from posttrain.runs.rules.rule import Finding, RunView, Threshold, rule


@rule(
    "overfitting",
    "The loss on held-out rows rises, evaluation after evaluation, while that on the training rows falls.",
    reads=("eval_loss",),
    evaluations=Threshold(3, "evaluations in a row, each above the one before"),
    share=Threshold(0.02, "of the best loss that the last one is above it"),
)
def overfitting(view: RunView) -> Finding | None:
    """Find a run that memorises its training rows."""
    count = int(view.limits["evaluations"])
    losses = [(line["step"], line["eval_loss"]) for line in view.evaluations if line.get("eval_loss") is not None]
    last = losses[-count - 1 :]
    if len(last) <= count or any(later[1] <= earlier[1] for earlier, later in itertools.pairwise(last)):
        return None
    step, best = min(losses, key=lambda pair: pair[1])
    train = view.last("loss", 1)[0]
    then = next((line["loss"] for line in view.lines if line["step"] == max(step, 1)), train)
    if losses[-1][1] <= best + view.limits["share"] * abs(best) or train >= then:
        return None
    return Finding(
        f"the held-out loss has risen {count} evaluations in a row, from {best:.4g} after step {step} to "
        f"{losses[-1][1]:.4g}, while the training loss fell to {train:.4g}",
        {"eval_loss": losses[-1][1], "best": best, "best_step": step, "loss": train},
        f"--save-best --early-stopping {count}, fewer --epochs, or more rows",
    )


@rule(
    "evaluation-worse",
    "Held-out rows are done worse than before the first step.",
    share=Threshold(0.05, "of the value at the start, and more than that of a reward's whole scale of 0 to 1"),
    evaluations=Threshold(2, "evaluations in a row"),
)
def evaluation_worse(view: RunView) -> Finding | None:
    """Find a run whose evaluation is worse than before training."""
    count = int(view.limits["evaluations"])
    if "eval_loss" not in view.line and "eval_reward" not in view.line:
        return None
    for name, sign in (("eval_reward", -1.0), ("eval_loss", 1.0)):
        known = [line[name] for line in view.evaluations if line.get(name) is not None]
        if len(known) <= count:
            continue
        start, last = known[0], known[-count:]
        margin = view.limits["share"] * (max(1.0, abs(start)) if sign < 0 else abs(start))
        if all(sign * (value - start) > margin for value in last):
            return Finding(
                f"{name.replace('_', ' ')} is {last[-1]:.4g}, before the first step it was {start:.4g}",
                {name: last[-1], "start": start, "evaluations": count},
                "a lower --learning-rate; is eval-data of the same kind as data?",
            )
    return None


RULES = (overfitting, evaluation_worse)

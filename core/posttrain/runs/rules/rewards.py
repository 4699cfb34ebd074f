"""Rules about rewards without a learning signal."""

from __future__ import annotations

from posttrain.runs.rules.rule import Finding, RunView, Threshold, mean, rule


@rule(
    "dead-reward",
    "The reward is 0 for every answer of several steps in a row.",
    reads=("reward", "reward_std"),
    start=Threshold(2, "steps at the start: a reward that can be had at all is had by somebody in two batches"),
    steps=Threshold(20, "steps later on, where hard batches may follow each other"),
)
def dead_reward(view: RunView) -> Finding | None:
    """Find a run in which no answer had any reward."""
    rewards = view.last("reward", int(view.limits["steps"]))
    spreads = view.last("reward_std", int(view.limits["steps"]))
    never = len(rewards) == view.limits["start"] == len(view.first("reward", int(view.limits["start"]) + 1))
    if any(rewards) or any(spreads) or not (never or len(rewards) == view.limits["steps"]):
        return None
    return Finding(
        f"the reward is 0 for every answer of {len(rewards)} steps: nothing is learnt from it",
        {"reward": rewards[-1], "steps": len(rewards), "reward_std": spreads[-1] if spreads else None},
        "look at samples.jsonl: is the answer there and the reward too strict, or is it absent? "
        "Then easier prompts, a reward with parts (--reward format=0.2), or first sft on right answers",
    )


@rule(
    "no-signal",
    "All answers of every group score alike, several steps in a row.",
    reads=("zero_spread_share", "reward"),
    steps=Threshold(5, "steps: single batches may be too easy or too hard, five in a row are a pattern"),
)
def no_signal(view: RunView) -> Finding | None:
    """Find groups whose rewards do not differ, unless the task is solved or nothing scores at all."""
    if not view.compares_answers:
        return None
    count = int(view.limits["steps"])
    shares, rewards = view.last("zero_spread_share", count), view.last("reward", count)
    if len(shares) < count or min(shares) < 1 or not any(rewards) or view.has_improved():
        return None
    size = int(view.settings.get("group_size") or 8)
    return Finding(
        f"all answers of every group have scored alike for {count} steps (reward {mean(rewards):.3g}): "
        "advantages are 0 and nothing is learnt",
        {"zero_spread_share": shares[-1], "reward": mean(rewards), "steps": count},
        f"--group-size {2 * size}, or harder prompts where the reward is high and easier ones where it is low; "
        "dapo replaces such prompts",
    )


@rule(
    "spread-collapse",
    "The reward's spread within a group falls to a small part of what it was, without a better reward.",
    reads=("reward_std",),
    share=Threshold(0.1, "of the first steps' spread: below it one answer in a hundred decides the advantages"),
    steps=Threshold(10, "steps of which both means are taken"),
)
def spread_collapse(view: RunView) -> Finding | None:
    """Find a spread of rewards that vanishes while the reward does not rise."""
    ends = view.both_ends("reward_std")
    if ends is None:
        return None
    first, last = ends
    if mean(last) >= view.limits["share"] * mean(first):
        return None
    if mean(last) == 0 or view.has_improved():  # the rule no-signal covers no spread at all
        return None
    return Finding(
        f"the reward's spread within a group fell from {mean(first):.3g} to {mean(last):.3g}: the advantage signal has "
        "collapsed",
        {"reward_std": mean(last), "reward_std_first": mean(first), "reward": mean(view.last("reward", len(last)))},
        "--temperature 1.0 and a lower --learning-rate keep answers apart; a larger --group-size finds rarer ones",
    )


RULES = (dead_reward, no_signal, spread_collapse)

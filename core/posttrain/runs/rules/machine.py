"""Rules about memory and time: nearly full, hardly used, or spent waiting."""

from __future__ import annotations

from typing import Any

from posttrain.runs.rules.rule import Finding, RunView, Threshold, mean, median, rule


def micro_batch_that_fits(plan: dict[str, Any], peak: float, share: float) -> tuple[str, int] | None:
    """Return option and value with which the peak would be ``share`` of the memory; None where that is unknown.

    The part that grows with the micro-batch is the peak less weights, gradients and moments.
    """
    memory = plan.get("memory") or {}
    limit, fixed = memory.get("limit_mb"), memory.get("fixed_mb")
    if not limit or fixed is None or peak <= fixed:
        return None
    size = plan.get("settings", {}).get("micro_batch_size")
    name, now = ("--micro-batch-size", size) if size else ("--micro-batch-tokens", memory.get("micro_batch_tokens"))
    if not now:
        return None
    fits = now * (share * limit - fixed) / (peak - fixed)
    return (name, max(1, int(fits))) if fits >= 1 else None


@rule(
    "memory-near-limit",
    "The peak of the memory is close to all there is.",
    reads=("peak_memory_mb",),
    every=10,
    share=Threshold(0.95, "of the memory: the next longer row may not fit"),
)
def memory_near_limit(view: RunView) -> Finding | None:
    """Find a run that is about to run out of memory."""
    limit = (view.plan.get("memory") or {}).get("limit_mb")
    peak = view.line["peak_memory_mb"]
    if not limit or peak <= view.limits["share"] * limit:
        return None
    fits = micro_batch_that_fits(view.plan, peak, 0.85)
    cures = [f"{fits[0]} {fits[1]}"] if fits else []
    cures += [] if view.settings.get("gradient_checkpointing") else ["--gradient-checkpointing"]
    return Finding(
        f"{peak:.0f} of {limit:.0f} MB of memory were taken: a longer row may not fit",
        {"peak_memory_mb": peak, "limit_mb": limit, "fits": fits and fits[1]},
        ", or ".join(cures or ["a shorter --max-length"]),
    )


@rule(
    "memory-unused",
    "Most of a GPU's memory is never used.",
    reads=("peak_memory_mb",),
    every=10,
    share=Threshold(0.5, "of the GPU's memory: passes could be twice as large"),
    steps=Threshold(10, "steps, so that long rows have had their turn"),
)
def memory_unused(view: RunView) -> Finding | None:
    """Find a run whose micro-batches could be larger. On a CPU larger ones gain nothing, and the memory is shared."""
    memory = view.plan.get("memory") or {}
    limit, peak = memory.get("limit_mb"), view.line["peak_memory_mb"]
    if memory.get("device") != "cuda" or not limit or view.step < view.limits["steps"]:
        return None
    fits = micro_batch_that_fits(view.plan, peak, 0.85)
    if peak >= view.limits["share"] * limit or fits is None:
        return None
    return Finding(
        f"{peak / limit:.0%} of the GPU's memory was used at most",
        {"peak_memory_mb": peak, "limit_mb": limit, "fits": fits[1]},
        f"{fits[0]} {fits[1]}: fewer, larger passes, by the peaks measured here",
    )


#: Part of a step -> the name of what takes the time, and what helps.
_PARTS = {
    "reward_seconds": ("reward", "the reward: a faster one, or posttrain serve-rewards on other cores"),
    "data_seconds": ("data", "the data: without --streaming rows are tokenised once, before the run"),
    "generation_seconds": ("sampling", "--max-staleness 1 where sampling has a device of its own"),
}


@rule(
    "low-utilisation",
    "The trainer waits for its data, its rewards or its sampler for most of a step.",
    reads=("seconds",),
    every=10,
    reward=Threshold(0.3, "of a step in the reward: it should cost less than what it judges"),
    data=Threshold(0.2, "of a step reading rows"),
    sampling=Threshold(0.85, "of a step sampling; half to four fifths are usual where both take turns"),
    seconds=Threshold(1.0, "seconds of a step at least: nobody waits for shorter ones"),
    steps=Threshold(20, "steps of which the median is taken"),
)
def low_utilisation(view: RunView) -> Finding | None:
    """Find the part of a step that the others wait for."""
    count = int(view.limits["steps"])
    seconds = view.last("seconds", count)
    if len(seconds) < count or median(seconds) < view.limits["seconds"]:
        return None
    whole = mean(seconds)
    shares = {label: sum(view.last(name, count)) / count / whole for name, (label, _) in _PARTS.items()}
    shares["trainer"] = max(0.0, 1 - sum(shares.values()))
    for label, cure in _PARTS.values():
        if shares[label] > view.limits[label]:
            evidence = {f"{name}_share": round(value, 3) for name, value in shares.items()}
            idle = view.line.get("generator_idle_seconds")
            evidence |= {"seconds": whole} | ({} if idle is None else {"generator_idle_share": round(idle / whole, 3)})
            return Finding(f"{shares[label]:.0%} of a step's {whole:.2g} s go into {label}", evidence, cure)
    return None


RULES = (memory_near_limit, memory_unused, low_utilisation)

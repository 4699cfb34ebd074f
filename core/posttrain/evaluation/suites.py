"""Standard suites through lm-evaluation-harness, with its tasks, prompts and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from posttrain.assembly.objects import InMemory
from posttrain.errors import DependencyError, SettingsError
from posttrain.evaluation.evaluate import compare
from posttrain.evaluation.opened import settings_of
from posttrain.evaluation.result import Evaluation, SetResult
from posttrain.evaluation.statistics import Interval
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.settings import DataSettings, ModelSettings

#: Quantile of the normal distribution at 0.975.
_Z = 1.959963984540054


def run_suite(
    model: str,
    tasks: list[str],
    given: dict[str, Any],
    objects: InMemory,
    against: str | None = None,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Run ``tasks`` of lm-evaluation-harness, names or YAML files, with one model or two. Raises PosttrainError."""
    harness = _harness()
    names = [name for text in tasks for name in text.split(",") if name]
    wanted = [_task(name) for name in names]
    settings = settings_of(model, given)
    found = Evaluation(model, {}, against, asked={"suite": names, "limit": settings.data.limit})
    batch = settings.generation.generation_batch_size
    found.sets = _run(harness, wanted, settings.model, settings.data, batch, objects, say)
    if against is not None:
        other = replace(settings.model, model=settings_of(against, {}).model.model)
        found.others = _run(harness, wanted, other, settings.data, batch, InMemory(), say)
        found.comparisons = {name: compare(one, found.others[name]) for name, one in found.sets.items()}
    return found


def _harness() -> Any:
    try:
        import lm_eval
        import lm_eval.models.huggingface
    except ImportError as error:
        raise DependencyError(
            f"Suites need lm-evaluation-harness: {error}. Install it with: pip install 'posttrain[evaluate]'"
        ) from None
    return lm_eval


def _task(name: str) -> Any:
    """Return a task's name, or the configuration in a YAML file."""
    if not name.endswith((".yaml", ".yml")):
        return name
    file = Path(name).expanduser()
    if not file.is_file():
        raise SettingsError(f"Task file '{name}' does not exist.")
    import yaml

    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"Task file '{name}' cannot be read: {' '.join(str(error).split())[:300]}.") from None
    if not isinstance(config, dict) or "task" not in config:
        raise SettingsError(f"Task file '{name}' names no task, expected a key 'task' as lm-evaluation-harness wants.")
    return config


def _run(
    harness: Any,
    tasks: list[Any],
    settings: ModelSettings,
    rows: DataSettings,
    batch_size: int,
    objects: InMemory,
    say: Callable[[str], None],
) -> dict[str, SetResult]:
    name = settings.model
    tokenizer = objects.tokenizer or load_tokenizer(name, settings, rows.chat_template)
    loaded = load_policy(objects.model or name, tokenizer, replace(settings, packing=False))
    loaded.policy.eval()
    say(f"{name or 'model'}: {', '.join(str(t['task'] if isinstance(t, dict) else t) for t in tasks)}")
    seed = rows.seed
    with torch.no_grad():
        wrapped = harness.models.huggingface.HFLM(
            pretrained=loaded.policy.model, tokenizer=tokenizer, batch_size=batch_size
        )
        try:
            results = harness.simple_evaluate(
                wrapped,
                tasks=tasks,
                limit=rows.limit,
                system_instruction=rows.system_prompt,
                apply_chat_template=bool(rows.chat or rows.system_prompt),
                bootstrap_iters=0,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except (KeyError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise SettingsError(f"lm-evaluation-harness cannot run these tasks: {reason}") from error
    return {task: _result(found, results["samples"].get(task, [])) for task, found in results["results"].items()}


def _result(found: dict[str, Any], samples: list[dict[str, Any]]) -> SetResult:
    """Convert the harness' figures, with intervals from the rows where a figure is their mean."""
    result = SetResult("suite", len(samples))
    for key, value in found.items():
        name, _, kind = key.partition(",")
        if not isinstance(value, int | float) or isinstance(value, bool) or name.endswith("_stderr") or not kind:
            continue
        figure = name if kind == "none" else f"{name} ({kind})"
        values = [_number(sample.get(name)) for sample in samples if sample.get("filter", "none") == kind]
        if values and None not in values and math.isclose(sum(values) / len(values), value, abs_tol=1e-9):  # type: ignore[arg-type]
            result.add(figure, [float(v) for v in values if v is not None])
            continue
        error = found.get(f"{name}_stderr,{kind}")
        wide = _Z * error if isinstance(error, int | float) else math.nan
        result.figures[figure] = Interval(float(value), value - wide, value + wide)
    result.lines = [
        {"row": s.get("doc_id"), "target": s.get("target"), "answers": s.get("filtered_resps")} for s in samples
    ]
    return result


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None

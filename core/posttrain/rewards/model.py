"""A reward model as a reward: a folder that transformers reads as a classifier of sequences, or of steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from posttrain.errors import ModelError, PosttrainError, RewardError
from posttrain.models import foreign
from posttrain.models.adapters import adapter_base, merged
from posttrain.models.config_files import architectures
from posttrain.models.finite import finite
from posttrain.models.processor import reads_images
from posttrain.rewards.image_model import image_reward_model, refuse_unseen
from posttrain.rewards.steps import step_reward
from posttrain.runs.checkpoints import model_in


def reward_model(
    folder: Path | str, batch_size: int = 16, device: str | torch.device | None = None
) -> Callable[[list[Any], list[str]], list[float]]:
    """Load the reward model in ``folder``, or that of a run, and return the reward function ``(prompts, completions)``.

    The model's own tokenizer encodes texts, whatever the policy's is, and its chat template conversations. The score is
    read at the last real token, so that padding has no effect. A model that scores steps becomes the reward of
    ``posttrain.rewards.steps``. Raises ModelError for a folder without a reward model.
    """
    from transformers import AutoTokenizer

    folder = Path(model_in(str(folder)))
    if _sees(folder):
        function = image_reward_model(folder, batch_size, device)
        function.__name__ = Path(folder).resolve().name
        return function
    try:
        model, labels = _load(folder)
        tokenizer: Any = foreign.read(AutoTokenizer, folder)
    except (PosttrainError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # readers raise anything on a damaged file
        raise _cannot_load(folder, error) from error
    if model.config.num_labels != labels:
        raise ModelError(
            f"'{folder}' gives {model.config.num_labels} numbers, a reward model gives {labels}. "
            f"Train one with: posttrain train {'reward' if labels == 1 else 'prm-step'}"
        )
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = finite(f"Reward model '{folder}'", model.to(chosen)).eval().requires_grad_(False)

    def score(prompts: list[Any], completions: list[str], images: list[list[Any]] | None = None) -> list[float]:
        refuse_unseen(folder, images)
        rows = [encode(tokenizer, prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        _check_known(folder, model, rows)
        return score_rows(model, rows, batch_size)

    function = score if labels == 1 else step_reward(model, tokenizer, batch_size, partial(refuse_unseen, folder))
    function.__name__ = Path(folder).resolve().name
    return function


def encode(tokenizer: Any, prompt: Any, completion: str) -> list[int]:
    """Return the tokens of a prompt (text or messages) with its completion, ended as in the reward model's training."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt + completion)["input_ids"]
        end = tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]
    if not tokenizer.chat_template:
        raise RewardError(
            "The prompts are conversations and the reward model's tokenizer has no chat template. Use a reward model "
            "that was trained on conversations, or prompts that are text."
        )
    messages = [*prompt, {"role": "assistant", "content": completion}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    ends = [place for place, token in enumerate(ids) if token == tokenizer.eos_token_id]
    if ends and not tokenizer.decode(ids[ends[-1] + 1 :]).strip():
        return ids[: ends[-1] + 1]  # training cut a template's line break after the stop token too
    return ids


def _check_known(folder: Path, model: Any, rows: list[list[int]]) -> None:
    """Raise ModelError for a token that the model does not embed."""
    known, highest = model.get_input_embeddings().weight.shape[0], max((max(row, default=0) for row in rows), default=0)
    if highest >= known:
        raise ModelError(
            f"reward model '{folder}' embeds {known} tokens, and its tokenizer gives a text the token {highest}. They "
            "do not belong together."
        )


def score_rows(model: Any, rows: list[list[int]], batch_size: int, extra_padding: int = 0) -> list[float]:
    """Score each row of token ids, rows of similar length together; ``extra_padding`` columns change nothing."""
    scores = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        lengths = torch.tensor([len(rows[row]) for row in chosen])  # (b,)
        width = int(lengths.max()) + extra_padding
        ids = torch.zeros(len(chosen), width, dtype=torch.long)  # (b, w)
        for place, row in enumerate(chosen):
            ids[place, : len(rows[row])] = torch.tensor(rows[row])
        mask = (torch.arange(width) < lengths[:, None]).long()  # (b, w)
        with torch.no_grad():
            values = _last_token_scores(model, ids, mask, lengths - 1)  # (b,)
        for row, value in zip(chosen, values.tolist(), strict=True):
            scores[row] = value
    return scores


def _last_token_scores(model: Any, ids: Tensor, mask: Tensor, last: Tensor) -> Tensor:
    """Return the scores ``(b,)`` of right-padded ``ids`` ``(b, w)`` at column ``last`` ``(b,)``."""
    device = model.device
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if isinstance(getattr(model, "score", None), torch.nn.Module):
        # transformers searches the last token that is not the padding token, and misses a real end token of that id.
        hidden = model.base_model(**inputs).last_hidden_state  # (b, w, h)
        hidden = hidden[torch.arange(len(last), device=device), last.to(device)]  # (b, h)
        return model.score(hidden)[:, 0].float().cpu()
    return model(**inputs).logits[:, 0].float().cpu()  # encoders pool at their own token


def _load(folder: Path) -> tuple[Any, int]:
    """Load the model in ``folder``, or an adapter merged into its base; also the number of its outputs.

    One for a sequence, two classes (bad, good) for a step.
    """
    import transformers

    kinds: dict[str, tuple[Any, int]] = {
        "SEQ_CLS": (transformers.AutoModelForSequenceClassification, 1),
        "TOKEN_CLS": (transformers.AutoModelForTokenClassification, 2),
    }
    base = adapter_base(str(folder))
    if base is None:
        kind, labels = kinds[_check_folder(folder)]
        model, report = foreign.read_model(kind, folder, "vocabulary", use_safetensors=True)
        missing = sorted(report["missing_keys"])
        if missing:
            raise ModelError(
                f"reward model '{folder}' lacks {len(missing)} of its weights, first '{missing[0]}'. transformers "
                "would fill it with random numbers; check the copy, or train one with: posttrain train reward"
            )
        return model, labels
    from peft import PeftConfig

    task = PeftConfig.from_pretrained(str(folder)).task_type
    if task not in kinds:
        raise ModelError(f"The adapter in '{folder}' has no reward head. Train one with: posttrain train reward --lora")
    kind, labels = kinds[task]
    head = "score" if labels == 1 else "steps"
    model, _ = foreign.read_model(kind, base, head, use_safetensors=True, num_labels=labels)
    return merged(model, str(folder)), labels


def _sees(folder: Path) -> bool:
    """Return whether the folder, or the base of its adapter, holds a vision-language model that scores sequences."""
    source = adapter_base(str(folder)) or str(folder)
    if not (Path(source) / "config.json").is_file() and Path(source) == folder:
        return False  # _check_folder says what is wrong
    if Path(source) == folder and _check_folder(folder) != "SEQ_CLS":
        return False
    try:
        return reads_images(foreign.read(AutoConfig, source))
    except (OSError, ValueError):
        return False


def _cannot_load(folder: Path | str, error: Exception) -> ModelError:
    reason, hint = " ".join(str(error).split()), ""
    if foreign.needs_own_code(error):
        reason = "it needs Python code from its own folder (auto_map), which does not run"
        hint = ". Expected a model that transformers itself knows."
    elif "safetensors" in reason:
        hint = " Only safetensors weights are loaded; convert others with transformers' save_pretrained."
    return ModelError(f"reward model '{folder}' cannot be loaded: {reason}{hint}")


def _check_folder(folder: Path) -> str:
    """Return what the model in ``folder`` classifies, by peft's name."""
    try:
        kinds = architectures(folder) or ["nothing"]
    except ModelError as error:
        raise ModelError(f"reward model '{folder}': {error}") from None
    if any("TokenClassification" in kind for kind in kinds):
        return "TOKEN_CLS"
    # Any other model would get a head with random weights, without an error.
    if not any("SequenceClassification" in kind or kind.endswith("RewardModel") for kind in kinds):
        raise ModelError(
            f"'{folder}' holds {', '.join(kinds)}, which has no reward head. Train one with: posttrain train reward"
        )
    return "SEQ_CLS"

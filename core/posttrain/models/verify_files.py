"""Hold what was made from a run, or from a folder, against what was trained: its own files, merged, GGUF, vLLM."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from posttrain.errors import DependencyError, ModelError, PosttrainError, SettingsError
from posttrain.models import foreign
from posttrain.models.export import export
from posttrain.models.generation_config import configured_stops
from posttrain.models.load import quantization_of
from posttrain.models.proof import (
    FILE,
    TOLERANCES,
    Proof,
    continue_greedily,
    plain_values,
    rows_for,
    sample_tokens,
    shown_values,
    template_hash,
    tokenizer_hash,
)
from posttrain.models.reload import head_of, load_plainly
from posttrain.models.shown import shown_rows
from posttrain.models.verify import Verdict, compare_model, compare_numbers, compare_texts
from posttrain.network.image_reader import reader_of
from posttrain.settings import Settings

#: What quantised tensors of a GGUF file may do to a log-prob of a model that is not small.
GGUF_TOLERANCES = {"F32": 2e-3, "F16": 0.05, "BF16": 0.25, "Q8_0": 0.5}
COARSE = 3.0


def verify(
    model: str,
    against: list[str] | None = None,
    *,
    tolerance: float | None = None,
    trust_remote_code: str | None = None,
) -> list[Verdict]:
    """Compare the final model of a run (or a folder's model) with what was trained, and with each of ``against``.

    ``against`` holds folders, .gguf files, "merged" (the adapter put into its base) and "vllm" (the real engine).
    What was trained is known from the run's proof.json; of a folder that belongs to no run its own numbers are taken.
    Raises PosttrainError for what cannot be loaded at all.
    """
    run = Path(model).expanduser()
    if not run.is_dir():
        raise ModelError(f"'{model}' does not exist. Expected a run directory or the folder of a model.")
    folder = run / "model" if (run / "run.json").is_file() else run
    owner = folder.parent if (folder.parent / FILE).is_file() and folder.name == "model" else None
    if not folder.is_dir():
        raise ModelError(f"The run in '{model}' has no final model. Go on with: posttrain resume {model}")
    settings = _settings(folder.parent)
    proof = _proof_of_folder(folder, settings, trust_remote_code) if owner is None else Proof.read(owner)
    if owner is None and not against:
        Proof.read(run)  # says what is missing
    verdicts = []
    if owner is not None:
        verdict = Verdict(str(folder), tolerance or proof.tolerance)
        _hold(verdict, proof, lambda: _plain(folder, proof.dtype, settings, trust_remote_code))
        verdicts.append(verdict)
    for name in against or []:
        verdicts.append(_against(name, folder, proof, settings, tolerance, trust_remote_code))
    return verdicts


def _settings(run: Path) -> Settings:
    """Settings of the run that made a folder; plain ones where there is none."""
    file = run / "run.json"
    if not file.is_file():
        return Settings()
    return Settings.from_record(json.loads(file.read_text(encoding="utf-8"))["settings"])


def _plain(folder: Path, dtype: str, settings: Settings, trust: str | None) -> tuple[Any, Any]:
    quantization = quantization_of(settings.model) if (folder / "adapter_config.json").is_file() else None
    return load_plainly(folder, dtype, quantization=quantization, trust=trust)


def _hold(verdict: Verdict, proof: Proof, load: Callable[[], tuple[Any, Any]]) -> None:
    """Load and compare; what keeps somebody from loading it is the verdict."""
    try:
        model, tokenizer = load()
    except PosttrainError:
        raise
    except Exception as error:  # of transformers, peft or the files
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        verdict.problems.append(f"it cannot be loaded: {type(error).__name__}: {first}")
        return
    compare_model(verdict, proof, model, tokenizer)
    compare_texts(verdict, proof, tokenizer, getattr(model, "generation_config", None))


def _proof_of_folder(folder: Path, settings: Settings, trust: str | None) -> Proof:
    """A proof of what a folder's own model says, in float32."""
    model, tokenizer = _plain(folder, "float32", settings, trust)
    head, config = head_of(folder), model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or 2**20
    proof = Proof(head, "float32", rows_for(tokenizer, head, config.vocab_size, longest))
    proof.stops = sorted(configured_stops(getattr(model, "generation_config", None), tokenizer))
    proof.tokenizer, proof.template = tokenizer_hash(tokenizer), template_hash(tokenizer)
    proof.samples = sample_tokens(tokenizer)
    if head == "vocabulary":
        continue_greedily(proof, model, tokenizer)
    proof.values, proof.gaps = plain_values(model, proof, tokenizer)
    reader = reader_of(tokenizer)
    if reader is not None:
        proof.shown = shown_rows(reader, config.vocab_size)[0].ids.tolist()
        proof.shown_values = shown_values(model, proof, tokenizer) or []
    return proof


def _against(
    name: str, folder: Path, proof: Proof, settings: Settings, tolerance: float | None, trust: str | None
) -> Verdict:
    if name == "merged":
        with tempfile.TemporaryDirectory() as scratch:
            export(str(folder), f"{scratch}/whole", dtype=_export_type(proof), trust_remote_code=trust)
            verdict = Verdict("merged", tolerance or proof.tolerance)
            _hold(verdict, proof, lambda: load_plainly(Path(scratch, "whole"), proof.dtype, trust=trust))
            return verdict
    if name == "vllm":
        return _vllm(folder, proof, tolerance, trust)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return _gguf(path, proof, tolerance)
    if not path.is_dir():
        raise SettingsError(f"'{name}' is no folder. Expected merged, vllm, a .gguf file or the folder of a model.")
    dtype = json.loads((path / "config.json").read_text(encoding="utf-8")).get("dtype") if _whole(path) else None
    narrower = TOLERANCES.get(str(dtype), 0.0)
    verdict = Verdict(name, tolerance or max(proof.tolerance, narrower))
    _hold(verdict, proof, lambda: _plain(path, proof.dtype, settings, trust))
    return verdict


def _whole(path: Path) -> bool:
    return (path / "config.json").is_file()


def _export_type(proof: Proof) -> str:
    return "bfloat16" if proof.dtype in ("bfloat16", "float16") else "float32"


def _gguf(path: Path, proof: Proof, tolerance: float | None) -> Verdict:
    """A GGUF file as transformers reads it; its coarsest type of tensor decides what is rounding."""
    try:
        import gguf
    except ImportError:
        raise DependencyError(
            "GGUF files need the package gguf. Install it with: pip install 'posttrain[gguf]'"
        ) from None
    if not path.is_file():
        raise ModelError(f"Model file '{path}' does not exist. Expected a .gguf file.")
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(str(path)).tensors}
    allowed = max((GGUF_TOLERANCES.get(kind, COARSE) for kind in kinds), default=COARSE)
    verdict = Verdict(str(path), tolerance or max(proof.tolerance, allowed), found={"tensor_types": sorted(kinds)})

    def load() -> tuple[Any, Any]:
        options: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32}
        model = foreign.read(transformers.AutoModelForCausalLM, path.parent, **options)
        return model.eval(), None

    try:
        model, _ = load()
    except Exception as error:  # of transformers' reader
        verdict.problems.append(f"it cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0]}")
        return verdict
    compare_numbers(verdict, proof, *plain_values(model, proof))
    return verdict


def _vllm(folder: Path, proof: Proof, tolerance: float | None, trust: str | None) -> Verdict:
    """The real engine, on the folder's model with its adapter put into the weights."""
    try:
        from vllm import LLM, SamplingParams
    except ImportError:
        raise DependencyError("--against vllm needs the package vllm. Install it with: make vllm") from None
    verdict = Verdict("vllm", tolerance or max(proof.tolerance, TOLERANCES["float16"]))
    with tempfile.TemporaryDirectory() as scratch:
        source = folder
        if (folder / "adapter_config.json").is_file():
            source = Path(scratch, "whole")
            export(str(folder), str(source), dtype=_export_type(proof), trust_remote_code=trust)
        longest = max(map(len, proof.rows)) + 8
        engine = LLM(
            str(source),
            dtype=proof.dtype,
            enforce_eager=True,
            max_model_len=longest,
            gpu_memory_utilization=0.4,
            trust_remote_code=False,
        )
        prompts: Any = [{"prompt_token_ids": row} for row in proof.rows]
        # two of the likeliest, beside the token itself: by how much it is beaten
        found = engine.generate(
            prompts, SamplingParams(prompt_logprobs=2, max_tokens=1, temperature=0.0), use_tqdm=False
        )
    values, gaps = [], []
    for row, output in zip(proof.rows, found, strict=True):
        places = output.prompt_logprobs[1:]
        values.append([place[token].logprob for place, token in zip(places, row[1:], strict=True)])
        gaps.append(
            [
                max(one.logprob for one in place.values()) - value
                for place, value in zip(places, values[-1], strict=True)
            ]
        )
    compare_numbers(verdict, proof, values, gaps[0][-proof.continued :])
    return verdict

"""Comparison of a run's or folder's derived models with what was trained: its own files, merged, GGUF, vLLM."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from posttrain.errors import DependencyError, ModelError, PosttrainError, SettingsError, first_line
from posttrain.models import foreign
from posttrain.models.config_files import read_config
from posttrain.models.export import export
from posttrain.models.generation_config import configured_stops
from posttrain.models.load import cannot_load, quantization_of
from posttrain.models.processor import auto_class
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
from posttrain.runs.record import stored_settings
from posttrain.settings import ModelSettings, Settings

#: Largest change of a log-prob by quantised tensors of a GGUF file, in a model that is not small.
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

    ``against`` holds folders, .gguf files, "merged" (the adapter merged into its base) and "vllm" (the real engine).
    What was trained is known from the run's proof.json; for a folder without a run its own values are taken. Raises
    PosttrainError for what cannot be loaded at all.
    """
    run = Path(model).expanduser()
    if not run.is_dir():
        raise ModelError(f"'{model}' does not exist. Expected a run directory or the folder of a model.")
    folder = run / "model" if (run / "run.json").is_file() else run
    owner = folder.parent if (folder.parent / FILE).is_file() and folder.name == "model" else None
    if not folder.is_dir():
        raise ModelError(f"The run in '{model}' has no final model. Go on with: posttrain resume {model}")
    settings = _settings(folder.parent).model
    if owner is None and not against:
        Proof.read(run)  # raises an error that says what is missing
    proof = _proof_of_folder(folder, settings, trust_remote_code) if owner is None else Proof.read(owner)
    verdicts = []
    if owner is not None:
        verdict = Verdict(str(folder), tolerance or proof.tolerance)
        _hold(verdict, proof, lambda: _plain(folder, proof.dtype, settings, trust_remote_code))
        verdicts.append(verdict)
    for name in against or []:
        verdicts.append(_against(name, folder, proof, settings, tolerance, trust_remote_code))
    return verdicts


def _settings(run: Path) -> Settings:
    """Return the settings of the run that made a folder; defaults where there is none."""
    file = run / "run.json"
    if not file.is_file():
        return Settings()
    return stored_settings(run)


def _plain(folder: Path, dtype: str, settings: ModelSettings, trust: str | None) -> tuple[Any, Any]:
    quantization = quantization_of(settings) if (folder / "adapter_config.json").is_file() else None
    return load_plainly(folder, dtype, quantization=quantization, trust=trust)


def _hold(verdict: Verdict, proof: Proof, load: Callable[[], tuple[Any, Any]]) -> None:
    """Load and compare; a failure to load becomes a problem of the verdict."""
    try:
        model, tokenizer = load()
        compare_model(verdict, proof, model, tokenizer)
        compare_texts(verdict, proof, tokenizer, getattr(model, "generation_config", None))
    except PosttrainError:
        raise
    except Exception as error:  # of transformers, peft or the files
        first = first_line(error)
        verdict.problems.append(f"it cannot be loaded: {type(error).__name__}: {first}")


def _proof_of_folder(folder: Path, settings: ModelSettings, trust: str | None) -> Proof:
    """Compute a proof from a folder's own model, in float32. Raises ModelError for one that cannot be computed."""
    try:
        return _computed(folder, settings, trust)
    except (PosttrainError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of transformers, peft or the files
        raise cannot_load("model", str(folder), error) from None


def _computed(folder: Path, settings: ModelSettings, trust: str | None) -> Proof:
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
    name: str, folder: Path, proof: Proof, settings: ModelSettings, tolerance: float | None, trust: str | None
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
    dtype = read_config(path, "config.json").get("dtype") if _whole(path) else None
    narrower = TOLERANCES.get(str(dtype), 0.0)
    verdict = Verdict(name, tolerance or max(proof.tolerance, narrower))
    _hold(verdict, proof, lambda: _plain(path, proof.dtype, settings, trust))
    return verdict


def _whole(path: Path) -> bool:
    return (path / "config.json").is_file()


def _export_type(proof: Proof) -> str:
    return "bfloat16" if proof.dtype in ("bfloat16", "float16") else "float32"


def _gguf(path: Path, proof: Proof, tolerance: float | None) -> Verdict:
    """Compare a GGUF file as transformers reads it; its coarsest tensor type sets the tolerance."""
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

    options: dict[str, Any] = {"gguf_file": path.name}
    labels: dict[str, Any] = {} if proof.head == "vocabulary" else {"num_labels": {"score": 1, "steps": 2}[proof.head]}
    try:
        kind = auto_class(str(path.parent), options, proof.head)
        model, report = foreign.read_model(kind, path.parent, proof.head, dtype=torch.float32, **options, **labels)
    except Exception as error:  # of transformers' reader
        verdict.problems.append(f"it cannot be loaded: {type(error).__name__}: {first_line(error)}")
        return verdict
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would compare random numbers
        what = "" if proof.head == "vocabulary" else "; a GGUF file holds the language model, without this head"
        verdict.problems.append(f"it lacks {len(missing)} of the model's weights, first '{missing[0]}'{what}")
        return verdict
    compare_numbers(verdict, proof, *plain_values(model.eval(), proof))
    return verdict


def _vllm(folder: Path, proof: Proof, tolerance: float | None, trust: str | None) -> Verdict:
    """Compare the real engine on the folder's model, with its adapter merged into the weights."""
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
        # two of the likeliest beside the token itself: by how much it is beaten
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

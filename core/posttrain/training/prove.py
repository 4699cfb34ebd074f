"""Verification at a run's end that the saved model is the trained one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from posttrain.errors import ModelError, RunFailed, first_line
from posttrain.models.adapters import adapter_base
from posttrain.models.generation_config import stop_ids
from posttrain.models.proof import (
    TOLERANCES,
    Proof,
    continue_greedily,
    fill_from_memory,
    rows_for,
    sample_tokens,
    template_hash,
    tokenizer_hash,
)
from posttrain.models.reload import load_plainly
from posttrain.models.save import saved_tokenizer
from posttrain.models.verify import Verdict, compare_extras, compare_model, compare_texts, compare_weights
from posttrain.network.precision import casts_to_bfloat16
from posttrain.runs.durable import put_folder

if TYPE_CHECKING:
    from posttrain.training.run import Compute, Outputs

#: Share of the free memory that a second copy of the weights may take.
SHARE = 0.7


def verify_saved(compute: Compute, outputs: Outputs, aside: Path) -> None:
    """Load the saved model and compare it with the one in memory. Raises RunFailed, on every rank, if they differ.

    The folder is then kept under another name than the model's.
    """
    strategy, directory, path = compute.strategy, outputs.directory, outputs.directory.path
    if not compute.settings.watch.verify_saved:
        return
    for parameter in compute.parameters:
        parameter.grad = None  # no step follows: their memory is enough for the second copy
    strategy.barrier()
    verdict = prove_saved(compute, aside, path)
    problem = None
    if verdict is not None:
        severity, code = ("info", "model-verified") if verdict.good else ("error", "model-differs")
        directory.event(code, severity, verdict.line(), evidence=verdict.record())
        if "not_loaded" in verdict.found and verdict.good:
            outputs.say(f"The saved model was not loaded again: {verdict.found['not_loaded']}.")
        if not verdict.good:
            put_folder(aside, path / "model-differs")
            problem = verdict.line()
    problem = strategy.everyone(problem)[0]
    if problem is not None:
        raise RunFailed(
            f"The saved model was loaded again and is not the one that was trained. {problem}. The checkpoints are "
            f"kept in '{directory.checkpoints}', what was saved in '{path / 'model-differs'}'. To save without "
            f"this check: posttrain resume {path} --no-verify-saved"
        )


def prove_saved(compute: Compute, folder: Path, record: Path) -> Verdict | None:
    """Compare the model in ``folder`` with the one in memory; write the numbers to the folder ``record``.

    All ranks call it; rank 0 loads the model and gets the verdict, the others None.
    """
    policy, strategy = compute.policy, compute.strategy
    proof = _begin(compute)
    first = strategy.rank == 0
    loaded, why = _load(compute, folder, proof) if first else (None, None)
    if strategy.shards_forward:
        proof.rows, proof.continued = strategy.everyone((proof.rows, proof.continued))[0]
    if first or strategy.shards_forward:
        fill_from_memory(proof, policy)
        for module in policy.modules():
            reshard: Any = getattr(module, "reshard", None)  # FSDP keeps what the last pass gathered
            if reshard is not None:
                reshard()
    if not first:
        return None
    proof.write(record)
    verdict = Verdict(folder.name.strip(".").removesuffix(".tmp"), _tolerance(compute, proof))
    extra = {name: value for name, value in policy.extra.state_dict().items() if not strategy.shards_forward}
    compare_extras(verdict, extra, folder)
    if loaded is None:
        verdict.found["not_loaded"] = why
        if why and why.startswith("it cannot be loaded"):
            verdict.problems.append(why)
        return verdict
    model, tokenizer = loaded
    compare_model(verdict, proof, model, tokenizer)
    compare_texts(verdict, proof, tokenizer, getattr(model, "generation_config", None))
    if not strategy.shards_forward:
        compare_weights(verdict, _tensors(policy.model), _tensors(model))
    return verdict


def _begin(compute: Compute) -> Proof:
    """Build the proof with its rows, texts and end tokens."""
    policy, tokenizer = compute.policy, saved_tokenizer(compute.policy.inner, compute.tokenizer)
    config = policy.inner.config.get_text_config()
    head = "vocabulary" if policy.head is not None else "score" if policy.inner.config.num_labels == 1 else "steps"
    weight = policy.inner.get_input_embeddings().weight
    longest = getattr(config, "max_position_embeddings", None) or 2**20
    return Proof(
        head=head,
        dtype=str(weight.dtype).removeprefix("torch."),
        rows=rows_for(tokenizer, head, config.vocab_size, longest),
        stops=sorted(stop_ids(policy.inner, tokenizer)),
        tokenizer=tokenizer_hash(tokenizer),
        template=template_hash(tokenizer),
        samples=sample_tokens(tokenizer),
    )


def _tolerance(compute: Compute, proof: Proof) -> float:
    """Return the tolerance; bfloat16 arithmetic over wider weights rounds as bfloat16 does."""
    narrow = compute.settings.model.autocast or (
        casts_to_bfloat16(compute.settings.model, compute.policy) and compute.strategy.handles_autocast
    )
    return max(proof.tolerance, TOLERANCES["bfloat16"]) if narrow else proof.tolerance


def _load(compute: Compute, folder: Path, proof: Proof) -> tuple[tuple[Any, Any] | None, str | None]:
    """Load the model in ``folder`` with its tokenizer, and continue the proof's rows; or return why not."""
    inner = compute.policy.inner
    quantization = getattr(inner.config, "quantization_config", None)
    size = sum(p.numel() * p.element_size() for p in inner.parameters())
    device, free = compute.policy.device, psutil.virtual_memory().available
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] * SHARE > size:
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type != "cpu" and quantization is None:
        device = torch.device("cpu")
    if compute.strategy.shards_forward:
        size *= compute.strategy.world
    if size > free * SHARE:
        return None, f"a second copy of its weights ({size / 2**30:.1f} GiB) does not fit into memory"
    if (folder / "adapter_config.json").is_file():
        try:
            base = adapter_base(str(folder))
        except ModelError:
            return None, "its base was handed over in memory and has no name"
        if compute.model_in_memory and base is not None and not Path(base).is_dir():
            return None, "its base was handed over in memory"
    trust = compute.settings.model.trust_remote_code
    try:
        experts = getattr(inner.config, "_experts_implementation", None)
        model, tokenizer = load_plainly(
            folder, proof.dtype, device=device, quantization=quantization, trust=trust, experts=experts
        )
        if proof.head == "vocabulary":
            continue_greedily(proof, model, tokenizer)
    except Exception as error:  # whatever keeps a user from loading it
        first = first_line(error)
        return None, f"it cannot be loaded: {type(error).__name__}: {first}"
    return (model, tokenizer), None


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return tensors by their names in peft and transformers, without those that trained copies replace."""
    replaced = (".original_module.", ".token_adapter.base_layer.")
    found = model.state_dict().items()
    return {n: v for n, v in found if isinstance(v, torch.Tensor) and not any(part in n for part in replaced)}

"""What the forward path's techniques give on an NVIDIA GPU, each against the plain way in one process.

    python benchmarks/gpu.py [--output FILE]

A Llama of the 1B shape with random weights, bfloat16 arithmetic over float32 weights: only sizes matter here. Every
figure is the median of the repeats, the two ways in turn after one round of each that does not count; memory is the
largest amount allocated during the update, weights and gradients included.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 49152}
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True}
BUDGET = 16384
#: Tokens of a chunk of the head, as a GPU gets them for this vocabulary.
CHUNK = 2**28 // (4 * 49152)
ROWS, BATCH, MEDIAN, SIGMA, LONGEST = 64, 32, 256, 1.0, 2048
#: Name -> completions of a prompt, tokens of the prompt, tokens of a completion.
PREFIXES = {"group of 8, prompt to completion 4:1": (8, 2048, 512), "pair, prompt to completion 2:1": (2, 4096, 2048)}
LEARNT = 2048


def main() -> int:
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs an NVIDIA GPU.", file=sys.stderr)
        return 2
    bench = Bench(options.repeats)
    ways = [bench.head, bench.kernel, *(functools.partial(bench.prefix, name) for name in PREFIXES)]
    ways += [bench.checkpointing, bench.offloading, bench.lengths]
    if importlib.util.find_spec("liger_kernel") is not None:
        ways.append(bench.liger)  # last: it changes the model for good
    facts = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "repeats": options.repeats}
    print(json.dumps(facts), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for way in ways:
        rows.append(way())
        options.output.write_text(json.dumps(facts | {"model": SHAPE | HEADS, "rows": rows}, indent=1) + "\n")
        what = f"{rows[-1]['name']}: {rows[-1]['after']}"
        speed, memory = rows[-1]["seconds_ratio"], rows[-1]["memory_ratio"]
        print(f"{what:<76} {speed:>6.2f} times as fast {memory:>6.2f} of the memory", flush=True)
    return 0


class Bench:
    """The model and the ways in which it is run."""

    def __init__(self, repeats: int):
        import torch
        from posttrain.network import attention
        from posttrain.network.find_head import find_head
        from posttrain.network.token_model import TokenModel
        from transformers import LlamaConfig, LlamaForCausalLM

        attention.register()
        torch.manual_seed(0)
        with torch.device("cuda"):
            self.model = LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS, max_position_embeddings=8192))
        self.model.set_attn_implementation(attention.NAME)
        self.policy = TokenModel(self.model, find_head(self.model), packed=True, shared=True)
        self.policy.train()
        self.repeats = repeats

    def lengths(self) -> dict[str, Any]:
        """Log-normal lengths: padded batches in order, packed rows by token budget."""
        source = random.Random(0)
        lengths = [max(2, min(LONGEST, round(source.lognormvariate(math.log(MEDIAN), SIGMA)))) for _ in range(ROWS)]
        examples = [self._example(0, n) for n in lengths]
        steps = [examples[start : start + BATCH] for start in range(0, ROWS, BATCH)]

        def way(packed: bool) -> None:
            self.policy.packed = packed
            for step in steps:
                self._update(step, None if packed else BATCH // 2)

        row = self._compare(f"{ROWS} rows of log-normal lengths", lambda: way(False), lambda: way(True))
        self.policy.packed = True
        return row | {"before": "padded in order", "after": "packed", "tokens": sum(lengths)}

    def kernel(self) -> dict[str, Any]:
        """The same packed rows through one variable-length kernel call a layer, and shape by shape."""
        from posttrain.network import varlen

        source = random.Random(1)
        examples = [self._example(0, source.randint(32, 512)) for _ in range(64)]
        fits = varlen.fits

        def way(fast: bool) -> None:
            varlen.fits = fits if fast else lambda *_: False
            self._update(examples, None)
            varlen.fits = fits

        row = self._compare("64 rows of 32 to 512 tokens, packed", lambda: way(False), lambda: way(True))
        return row | {"before": "a kernel call for each length", "after": "variable-length kernel"}

    def prefix(self, name: str) -> dict[str, Any]:
        """A prompt that several rows share, computed once a row or once."""
        import torch

        count, prompt, completion = PREFIXES[name]
        before = torch.randint(0, SHAPE["vocab_size"], (prompt,))
        examples = [self._example(prompt, completion, before) for _ in range(count)]

        def way(shared: bool) -> None:
            self.policy.shared = shared
            self._update(examples, None)

        row = self._compare(name, lambda: way(False), lambda: way(True))
        self.policy.shared = True
        return row | {"before": "each row alone", "after": "shared prefix"}

    def head(self) -> dict[str, Any]:
        """The vocabulary projection alone: all logits at once, or chunk by chunk."""
        import torch
        from posttrain.network.chunked_head import TokenQuery, token_statistics

        states = torch.randn(LEARNT * 4, SHAPE["hidden_size"], device="cuda", requires_grad=True)
        labels = torch.randint(0, SHAPE["vocab_size"], (LEARNT * 4,), device="cuda")
        head = self.policy.head
        assert head is not None

        def plain() -> None:
            with torch.autocast("cuda", torch.bfloat16):
                logits = head.logits(states)
            torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()

        def ours() -> None:
            with torch.autocast("cuda", torch.bfloat16):
                logps = token_statistics(states, labels, head, TokenQuery(CHUNK))["logps"]
            (-logps.sum()).backward()

        row = self._compare(f"vocabulary projection, {LEARNT * 4} tokens", plain, ours, above_weights=True)
        return row | {"before": "all logits", "after": f"{CHUNK} tokens at a time"}

    def checkpointing(self) -> dict[str, Any]:
        """Activations kept, or computed again."""
        examples = [self._example(0, 1024) for _ in range(16)]

        def way(on: bool) -> None:
            if on:
                self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self._update(examples, None)
            self.model.gradient_checkpointing_disable()

        row = self._compare("16 rows of 1,024 tokens", lambda: way(False), lambda: way(True), above_weights=True)
        return row | {"before": "activations kept", "after": "gradient checkpointing"}

    def offloading(self) -> dict[str, Any]:
        """Activations kept on the GPU, or in the main memory."""
        from contextlib import nullcontext

        from posttrain.network.kernels.offload import offloaded

        examples = [self._example(0, 1024) for _ in range(16)]

        def way(away: bool) -> None:
            self._update(examples, None, offloaded() if away else nullcontext())

        row = self._compare("16 rows of 1,024 tokens", lambda: way(False), lambda: way(True), above_weights=True)
        return row | {"before": "activations on the GPU", "after": "activations offloaded"}

    def liger(self) -> dict[str, Any]:
        """Plain modules, then Liger's: not in turn, since there is no way back."""
        import torch
        from posttrain.network.kernels.liger import use_liger

        examples = [self._example(0, 1024) for _ in range(16)]
        plain = [self._measure(lambda: self._update(examples, None)) for _ in range(self.repeats + 1)][1:]
        use_liger(self.model, torch.device("cuda"))
        fast = [self._measure(lambda: self._update(examples, None)) for _ in range(self.repeats + 1)][1:]
        row = self._row("16 rows of 1,024 tokens", plain, fast, above_weights=True)
        return row | {"before": "plain modules", "after": "liger kernels"}

    def _example(self, prompt: int, completion: int, before: Any = None) -> Any:
        import torch
        from posttrain.contract.views import Example, Sequence

        ids = torch.randint(0, SHAPE["vocab_size"], (completion,))
        ids = ids if before is None else torch.cat([before, ids])
        return Example({"completion": [Sequence(ids, torch.arange(len(ids)) >= max(1, prompt))]})

    def _update(self, examples: list[Any], size: int | None, saving: Any = None) -> None:
        from contextlib import nullcontext

        import torch
        from posttrain.contract.pad import sequences_of
        from posttrain.network.chunked_head import TokenQuery
        from posttrain.training.micro_batches import micro_batches

        policy = self.policy
        for micro in micro_batches(examples, BUDGET, size, policy.packed, policy.shared):
            with torch.autocast("cuda", torch.bfloat16), saving or nullcontext():
                loss = -policy(sequences_of(micro), TokenQuery(CHUNK))["logps"].sum()
            loss.backward()

    def _measure(self, work: Callable[[], None]) -> tuple[float, float]:
        """Seconds, and the most memory allocated in GiB."""
        import torch

        self.model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - begun, torch.cuda.max_memory_allocated() / 2**30

    def _compare(
        self, name: str, plain: Callable[[], None], ours: Callable[[], None], above_weights: bool = False
    ) -> dict[str, Any]:
        pairs = [(self._measure(plain), self._measure(ours)) for _ in range(self.repeats + 1)][1:]
        return self._row(name, [a for a, _ in pairs], [b for _, b in pairs], above_weights)

    def _row(self, name: str, plain: list[Any], ours: list[Any], above_weights: bool = False) -> dict[str, Any]:
        """``above_weights``: of the memory only what is not weights."""
        fixed = sum(p.numel() * 4 for p in self.model.parameters()) / 2**30 if above_weights else 0.0
        seconds = [[one[0] for one in side] for side in (plain, ours)]
        memory = [statistics.median(one[1] for one in side) - fixed for side in (plain, ours)]
        medians = [statistics.median(side) for side in seconds]
        return {
            "name": name,
            "seconds": [[min(side), m, max(side)] for side, m in zip(seconds, medians, strict=True)],
            "memory_gib": memory,
            "seconds_ratio": medians[0] / medians[1],
            "memory_ratio": memory[1] / memory[0],
        }


if __name__ == "__main__":
    sys.exit(main())

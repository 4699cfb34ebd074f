"""Options of the model and its adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.errors import SettingsError
from posttrain.settings.limits import at_least


@dataclass(frozen=True)
class ModelSettings:
    """The model, its adapter, and how both are loaded and computed."""

    model: str = ""
    """Model to train: a transformers folder, a Hub id, a .gguf file, the folder of an adapter, or example: a small one
    that is made on the spot."""
    dtype: Literal["float32", "bfloat16", "float64"] | None = None
    """Type of the weights. [float32 on a CPU, bfloat16 on a GPU with adapters, else float32]"""
    dropout: bool | None = None
    """Keep the dropout, layer dropout and router noise of the model's configuration in training. [on where only given
    texts are imitated, off where the policy is compared with anything: a reference, a teacher, its own samples]"""
    router_loss_coefficient: float | None = None
    """Weight of the load-balancing loss of a mixture of experts; 0 is none. [the model's configuration:
    router_aux_loss_coef where output_router_logits is true, else 0]"""
    autocast: bool | None = None
    """Compute in bfloat16 over float32 weights. [on where the GPU has bfloat16 and the weights are float32]"""
    bfloat16_gradients: bool = False
    """Multiply in bfloat16 in the backward pass, float32 in the forward pass: faster on CPUs with units for it."""
    device: str | None = None
    """cpu, cuda, mps. [the best there is]"""
    attention: str | None = None
    """Attention implementation of transformers: sdpa, eager, flash_attention_2. [the model's default]"""
    packing: bool = True
    """Lay short rows behind each other in one sequence where the model keeps them apart exactly, instead of padding."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    liger: bool = False
    """Use the kernels of the package liger-kernel for norms and gated layers (NVIDIA GPUs)."""
    max_pixels: int | None = None
    """Most pixels of an image, width times height; larger ones are scaled down before the model's own processor sees
    them. [as many as it has]"""
    train_vision: Literal["none", "projector", "all"] = "projector"
    """What of a vision-language model is trained beside its language part: nothing, what projects images into it, or
    the image encoder too. An adapter lies on the same parts."""
    trust_remote_code: str | None = None
    """Name of the one model whose own Python code may run."""
    cache: str | None = None
    """Folder for tokenised data; 'off' for none. [~/.cache/posttrain]"""
    lora: bool = False
    """Train a low-rank adapter instead of the weights."""
    lora_rank: int = 16
    """Rank of the adapter."""
    lora_alpha: float | None = None
    """Scale of the adapter. [twice the rank]"""
    lora_dropout: float = 0.0
    """Dropout before the adapter; above 0 it is on whatever the option dropout says."""
    lora_targets: list[str] | None = None
    """Module names that get an adapter. [every linear layer but the head]"""
    lora_target_parameters: list[str] | None = None
    """Stacked matrices that get an adapter too, such as those of experts: experts.gate_up_proj,experts.down_proj."""
    lora_modules_to_save: list[str] | None = None
    """Module names that are trained whole beside the adapter and saved with it: embed_tokens, lm_head."""
    adapter_config: str | None = None
    """A peft configuration (JSON or YAML with peft_type: LORA, IA3, VERA, OFT, ...) in the place of the
    lora options; implies lora. In Python also adapter=, a configuration of peft."""
    add_tokens: list[str] | None = None
    """Ordinary tokens that the vocabulary gets, or files with one a line; their rows start as the mean row, are
    trained, and are saved with an adapter."""
    train_only: list[str] | None = None
    """Parts of the names of weights that alone are trained, without an adapter: layers.1*.mlp; * stands for
    anything."""
    freeze: list[str] | None = None
    """Parts of the names of weights that are not trained, without an adapter."""
    dora: bool = False
    """Weight-decomposed adapters (DoRA); implies lora."""
    quantize: Literal["nf4", "fp4", "int8"] | None = None
    """Load the base quantised through bitsandbytes; implies lora."""
    double_quantization: bool = True
    """Quantise the 4-bit base's scales too: 0.37 bits a weight less."""

    def check(self) -> None:
        """Raise SettingsError for options that contradict each other."""
        at_least("max-pixels", self.max_pixels, 1)
        chosen = [name for name in ("train_only", "freeze") if getattr(self, name)]
        if chosen and (self.lora or self.dora or self.quantize or self.adapter_config):
            raise SettingsError(
                f"{chosen[0].replace('_', '-')} chooses weights of the model, and an adapter is trained instead of "
                "them. Leave one of them out; modules of an adapter are named by --lora-targets."
            )
        own = ("lora_targets", "lora_target_parameters", "lora_alpha", "dora")
        if self.adapter_config and any(getattr(self, name) for name in own):
            name = next(name for name in own if getattr(self, name))
            raise SettingsError(f"{name.replace('_', '-')} belongs into the adapter-config. Leave one of them out.")

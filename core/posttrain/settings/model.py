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
    built on the spot."""
    dtype: Literal["float32", "bfloat16", "float64"] | None = None
    """Type of the weights. [float32 on a CPU, bfloat16 on a GPU with adapters, else float32]"""
    dropout: bool | None = None
    """Keep the dropout, layer dropout and router noise of the model's configuration in training. [on where given texts
    are imitated, off where the policy is compared: with a reference, a teacher, its own samples]"""
    router_loss_coefficient: float | None = None
    """Weight of the load-balancing loss of a mixture of experts; 0 turns it off. [the model's configuration:
    router_aux_loss_coef where output_router_logits is true, else 0]"""
    autocast: bool | None = None
    """Compute in bfloat16 over float32 weights. [on where the GPU has bfloat16 and the weights are float32]"""
    bfloat16_gradients: bool = False
    """Multiply in bfloat16 in the backward pass, in float32 in the forward pass: faster on CPUs with bfloat16 units."""
    device: str | None = None
    """cpu, cuda, mps. [the best available]"""
    attention: str | None = None
    """Attention implementation of transformers: sdpa, eager, flash_attention_2. [the model's default]"""
    packing: bool = True
    """Pack short rows into one sequence where the model keeps them apart exactly, instead of padding."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory, more time. [where even the smallest pass would not fit
    into memory otherwise; off for several processes]"""
    compile: bool = False
    """Compile the decoder's layers by torch.compile: a minute at the start; on a CPU it gained nothing."""
    liger: bool = False
    """Use the kernels of the package liger-kernel for norms and gated layers (NVIDIA GPUs)."""
    max_pixels: int | None = None
    """Most pixels of an image, width times height; larger ones are scaled down before the model's processor. [the
    processor's own limit]"""
    train_vision: Literal["none", "projector", "all"] = "projector"
    """Trained parts of a vision-language model besides its language model: none, the projector of images into it, or
    the image encoder too. Adapters cover the same parts."""
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
    """Dropout before the adapter; above 0 it applies whatever the option dropout says."""
    lora_targets: list[str] | None = None
    """Modules that get an adapter, by name. [every linear layer except the head]"""
    lora_target_parameters: list[str] | None = None
    """Stacked matrices that get an adapter too, such as experts: experts.gate_up_proj,experts.down_proj."""
    lora_modules_to_save: list[str] | None = None
    """Modules trained in full beside the adapter and saved with it, by name: embed_tokens, lm_head."""
    adapter_config: str | None = None
    """A peft configuration (JSON or YAML with peft_type: LORA, IA3, VERA, OFT, ...) instead of the lora options;
    implies lora. In Python also adapter=, a peft configuration."""
    add_tokens: list[str] | None = None
    """Ordinary tokens to add to the vocabulary, or files with one per line; their rows start as the mean row, are
    trained, and are saved with an adapter."""
    train_only: list[str] | None = None
    """Train only weights whose names contain one of these, without an adapter: layers.1*.mlp; * matches anything."""
    freeze: list[str] | None = None
    """Freeze weights whose names contain one of these, without an adapter."""
    dora: bool = False
    """Weight-decomposed adapters (DoRA); implies lora."""
    quantize: Literal["nf4", "fp4", "int8"] | None = None
    """Load the base quantised through bitsandbytes; implies lora."""
    double_quantization: bool = True
    """Also quantise the scales of the 4-bit base: 0.37 bits less per weight."""

    def check(self) -> None:
        """Raise SettingsError for options that contradict each other."""
        at_least("max-pixels", self.max_pixels, 1)
        for name in ("liger", "bfloat16_gradients"):
            if self.compile and getattr(self, name):
                raise SettingsError(
                    f"compile and {name.replace('_', '-')} both replace the kernels of a layer. Leave one of them out."
                )
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

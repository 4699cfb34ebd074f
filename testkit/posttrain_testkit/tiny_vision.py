"""Vision-language models of tens of thousands of parameters with the real processors of their families.

Neither files nor a network are needed: tokenizers and image processors are built from their classes, models from
configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from posttrain.models.processor import head_class
from posttrain.network.image_reader import without_videos
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .:?\n<>_-"
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: An image encoder of 16 patches; ``projection_dim`` is the width of the language part.
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
Pair = tuple[Any, Any]


def picture(seed: int, width: int = 24, height: int = 20) -> Any:
    """Make an image of noise, the same each time for a seed."""
    import PIL.Image

    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def shown(*parts: str | int) -> dict[str, Any]:
    """Build a user's message of texts and images of noise, given by their seeds."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": picture(part)}
        for part in parts
    ]
    return {"role": "user", "content": content}


def answered(text: str) -> dict[str, Any]:
    """Build an assistant's message."""
    return {"role": "assistant", "content": text}


def tiny_vision(
    family: str, dtype: torch.dtype = torch.float32, seed: int = 1234, head: str = "vocabulary", **text: Any
) -> Pair:
    """Build a model of ``FAMILIES`` and its processor, the same each time for a seed; no global random state changes.

    ``text`` changes fields of the language part's configuration.
    """
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        model, processor = FAMILIES[family](_TEXT | text)
        if head != "vocabulary":
            config = model.config
            config.num_labels = {"score": 1, "steps": 2}[head]
            model = head_class(config, head).from_config(config)
    return model.to(dtype), processor


def save_tiny_vision(family: str, folder: Path | str, **options: Any) -> Path:
    """Write such a model and its processor into ``folder``, as transformers does; return the folder."""
    model, processor = tiny_vision(family, **options)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings of configurations about their own defaults."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


def _tokenizer(special: list[str], image: str, **named: str) -> Any:
    """Build a tokenizer with one token a letter and one for each of ``special``; ``image`` is the placeholder."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *special, *_LETTERS]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special,
        chat_template=_TEMPLATE.replace("IMAGE", image),
        **named,
    )


def _qwen(kind: str, text: dict[str, Any]) -> Pair:
    """Qwen2-VL, Qwen2.5-VL or Qwen3-VL: sizes follow the image, positions have three dimensions."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _tokenizer(special, "<|vision_start|><|image_pad|><|vision_end|>")
    start, end, image, video = tokenizer.convert_tokens_to_ids(special)
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if kind == "Qwen3VL" else {}
    size = {"shortest_edge": 64, "longest_edge": 1024}
    pictures = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=size, **mean)
    processor = without_videos(getattr(transformers, f"{kind}Processor"))(
        image_processor=pictures, tokenizer=tokenizer, video_processor=None, chat_template=tokenizer.chat_template
    )
    text = {"head_dim": 16} | text
    eighth = text["head_dim"] // 8
    section = [eighth, 3 * eighth // 2, 3 * eighth // 2]
    rope = {"rope_type": "default", "mrope_section": section, "rope_theta": 10000.0}
    if kind == "Qwen3VL":
        rope["mrope_interleaved"] = True  # as transformers always computes; vLLM reads it
    tower = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "out_hidden_size": text["hidden_size"]}
    own: dict[str, dict[str, Any]] = {
        "Qwen2VL": {"embed_dim": 32, "hidden_size": text["hidden_size"], "mlp_ratio": 2},
        "Qwen2_5_VL": {"intermediate_size": 48, "window_size": 16, "fullatt_block_indexes": [1]},
        "Qwen3VL": {"intermediate_size": 48, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
    }
    config = getattr(transformers, f"{kind}Config")(
        text_config=text | {"vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config=tower | own[kind],
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), processor


#: Marks of the tiles into which Idefics3 and SmolVLM cut an image.
_TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]


def _idefics(text: dict[str, Any]) -> Pair:
    """Idefics3, and its smaller relative SmolVLM: an image is cut into tiles."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *_TILES]
    tokenizer = _tokenizer(special, "<image>")
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    processor = transformers.Idefics3Processor(
        image_processor=pictures, tokenizer=tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template
    )
    config = transformers.Idefics3Config(
        text_config=text | {"model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config=_VISION,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


def _smolvlm(text: dict[str, Any]) -> Pair:
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokenizer = _tokenizer([*named.values(), *_TILES], "<image>", **named)
    pictures = SmolVLMImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    processor = without_videos(transformers.SmolVLMProcessor)(
        image_processor=pictures,
        tokenizer=tokenizer,
        video_processor=None,
        image_seq_len=4,
        chat_template=tokenizer.chat_template,
    )
    config = transformers.SmolVLMConfig(
        text_config=text | {"model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config=_VISION,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


def _llava(text: dict[str, Any]) -> Pair:
    """LLaVA: one size for all images, features of a layer before the last."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _tokenizer(["<image>"], "<image>")
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = transformers.LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    config = transformers.LlavaConfig(
        text_config=text | {"model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config=_VISION | {"model_type": "clip_vision_model", "projection_dim": 32},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _gemma(text: dict[str, Any]) -> Pair:
    """Gemma 3: the embeddings of an image attend to each other in both directions; one layer has a window."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    breaks = ["\n" * count for count in (2, 3, 4)]  # tokens of the family, which vLLM looks up
    tokenizer = _tokenizer([*named.values(), *breaks], "<start_of_image>", **named)
    processor = transformers.Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=tokenizer.chat_template,
    )
    start, end, image = tokenizer.convert_tokens_to_ids(list(named.values()))
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "query_pre_attn_scalar": 16}
    config = transformers.Gemma3Config(
        text_config={"head_dim": 16} | text | layers | {"vocab_size": len(tokenizer)},
        vision_config=_VISION | {"vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=start,
        eoi_token_index=end,
        image_token_index=image,
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


def _paligemma(text: dict[str, Any]) -> Pair:
    """PaliGemma: the whole prompt has bidirectional attention."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = _tokenizer(["<image>"], "<image>")
    pictures: Any = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    pictures.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(
        image_processor=pictures, tokenizer=tokenizer, chat_template=tokenizer.chat_template
    )
    config = transformers.PaliGemmaConfig(
        text_config={"head_dim": 16} | text | {"model_type": "gemma", "vocab_size": len(tokenizer)},
        vision_config=_VISION
        | {"model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": text["hidden_size"]},
        projection_dim=text["hidden_size"],
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return transformers.PaliGemmaForConditionalGeneration(config), processor


def _internvl(text: dict[str, Any]) -> Pair:
    """InternVL: as many tiles as fit an image's shape."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(list(named.values()), "<IMG_CONTEXT>", **named)
    size = {"height": 16, "width": 16}
    processor = without_videos(transformers.InternVLProcessor)(
        image_processor=GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        video_processor=None,
        image_seq_length=4,
        chat_template=tokenizer.chat_template,
    )
    config = transformers.InternVLConfig(
        text_config=text | {"model_type": "qwen2", "vocab_size": len(tokenizer)},
        vision_config=_VISION | {"image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return transformers.InternVLForConditionalGeneration(config), processor


#: Families by name, each a function of fields of its language part's configuration.
FAMILIES: dict[str, Callable[[dict[str, Any]], Pair]] = {
    "qwen2-vl": lambda text: _qwen("Qwen2VL", text),
    "qwen2.5-vl": lambda text: _qwen("Qwen2_5_VL", text),
    "qwen3-vl": lambda text: _qwen("Qwen3VL", text),
    "idefics3": _idefics,
    "smolvlm": _smolvlm,
    "llava": _llava,
    "gemma3": _gemma,
    "paligemma": _paligemma,
    "internvl": _internvl,
}

"""``posttrain generate MODEL``: answer prompts with a model or the result of a run."""

from __future__ import annotations

import sys
from pathlib import Path

from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json
from posttrain.errors import DataError, SettingsError


def run(arguments: list[str]) -> int:
    """Print one answer a prompt."""
    parser = Parser("generate", "Let a model answer prompts; without a prompt they are read from standard input.")
    parser.add_argument("model", help="model folder, Hub id, .gguf file, adapter folder or run directory")
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be repeated")
    parser.add_argument("--prompts", help="text file with one prompt a line")
    parser.add_argument("--image", action="append", default=[], help="image before every prompt; may be repeated")
    parser.add_argument("--max-pixels", type=int, help="most pixels of an image; larger ones are scaled down")
    parser.add_argument("--system-prompt", help="system message for chat models")
    parser.add_argument("--chat-template-kwargs", help="variables of the chat template: enable_thinking=false")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer [256]")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token each time [0]")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling [1]")
    parser.add_argument("--top-k", type=int, default=0, help="sample from the k likeliest tokens; 0 is all [0]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling [0]")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the weights")
    parser.add_argument("--generation", choices=("hf", "vllm"), default="hf", help="what samples: hf or vllm [hf]")
    parser.add_argument(
        "--speculate",
        choices=("off", "ngram", "draft"),
        default="off",
        help="guess tokens and check them: faster [off]",
    )
    parser.add_argument("--draft-model", help="smaller model with the same tokeniser, for --speculate draft")
    parser.add_argument("--device", help="cpu, cuda, mps [the best there is]")
    parser.add_json()
    options = parser.parse_args(arguments)
    prompts = _prompts(options.prompt, options.prompts)
    from posttrain import api

    answers = api.generate_text(
        options.model,
        prompts,
        system_prompt=options.system_prompt,
        chat_template_kwargs=options.chat_template_kwargs,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        dtype=options.dtype,
        device=options.device,
        images=options.image,
        max_pixels=options.max_pixels,
        generation=options.generation,
        speculate=options.speculate,
        draft_model=options.draft_model,
    )
    if options.json:
        print_json([{"prompt": p, "completion": a} for p, a in zip(prompts, answers, strict=True)])
    else:
        print("\n\n".join(answers))
    return 0


def _prompts(given: list[str], file: str | None) -> list[str]:
    prompts = list(given)
    if file:
        try:
            prompts += [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.reason
            raise DataError(f"Prompt file '{file}' cannot be read: {reason}.") from None
    if not prompts and not sys.stdin.isatty():
        prompts = [text] if (text := sys.stdin.read().strip()) else []
    if not prompts:
        raise SettingsError("There is no prompt. Give one with --prompt TEXT or --prompts FILE.")
    return prompts

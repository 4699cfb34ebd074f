"""Log-probs and gradients of rows with pictures equal those of plain transformers, which reads each row alone.

Plain means: the processor's own call on the whole row, the family's own code and attention, autograd.
"""

import pytest
import torch
import transformers
from posttrain.contract.views import Sequence
from posttrain.data import prepare, read_rows
from posttrain.errors import ModelError
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.image_reader import reader_of
from posttrain.network.packing import pack_sequences
from posttrain.settings import Settings
from posttrain_testkit.tiny_vision import FAMILIES, answered, picture, shown

#: Two pictures behind equal text, one prompt with two answers, pictures of unlike sizes, a row of text.
ROWS = [
    {"messages": [shown(1, "what is it"), answered("abc")]},
    {"messages": [shown(2, "what is it"), answered("abc")]},
    {"messages": [shown(1, "what is it"), answered("xyz")]},
    {"messages": [{"role": "user", "content": "hello"}, answered("world")]},
    {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "see "},
                    {"type": "image", "image": picture(3, 40, 16)},
                    {"type": "text", "text": " and "},
                    {"type": "image", "image": picture(4)},
                ],
            },
            answered("no"),
        ]
    },
]


def loaded(folder, **options):
    settings = Settings(model=folder, train_vision="all", **options)
    tokenizer = load_tokenizer(folder, settings.model)
    found = load_policy(folder, tokenizer, settings.model)
    rows = read_rows(ROWS, ("language-modeling",), settings.data)
    examples = prepare(rows, tokenizer, settings.data, found.stop_ids, None)
    found.policy.eval()
    return found.policy, tokenizer, [example.sequences["completion"][0] for example in examples]


def plain(folder, processor, sequences, dtype):
    """Log-probs ``(n,)`` of what follows each prompt, and gradients of their mean by name."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    model.eval()
    logps = []
    for row, sequence in zip(ROWS, sequences, strict=True):
        inputs = plain_inputs(processor, row["messages"], sequence)
        assert inputs["input_ids"][0].tolist() == sequence.ids.tolist(), "the processor gives other tokens"
        logits = model(**inputs).logits[0]
        chosen = logits[:-1].log_softmax(-1).gather(1, sequence.ids[1:, None])[:, 0]
        logps.append(chosen[sequence.trained[1:]])
    flat = torch.cat(logps)
    flat.mean().backward()
    return flat.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def plain_inputs(processor, messages, sequence):
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    pictures = [part["image"] for part in parts if part["type"] == "image"]
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False)
    if type(processor).__name__ == "PaliGemmaProcessor":  # it has no conversations: only its pictures can be asked for
        inputs = {"input_ids": sequence.ids[None]}
        if pictures:
            inputs |= processor.image_processor(pictures, return_tensors="pt")
        inputs["token_type_ids"] = (sequence.trained.cumsum(0) > 0).long()[None]  # 0: prefix, 1: suffix
        return inputs
    if not pictures:
        inputs = processor.tokenizer([text], return_tensors="pt", add_special_tokens=False)
        inputs.pop("token_type_ids", None)
    else:
        inputs = processor(text=[text], images=[pictures], return_tensors="pt", add_special_tokens=False)
    count = len(sequence)  # the template's line break behind the answer is not learnt
    by_token = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    return {name: value[:, :count] if name in by_token else value for name, value in inputs.items()}


def differences(policy, sequences, expected):
    found = policy(sequences, TokenQuery())["logps"]
    found.mean().backward()
    logps, gradients = expected
    own = {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}
    missing = {name for name, g in gradients.items() if name not in own and g.abs().max() > 0}
    assert not missing
    worst = max(
        float((own[name] - g).abs().max() / g.abs().max().clamp(min=1.0))
        for name, g in gradients.items()
        if name in own
    )
    return float((found - logps).detach().abs().max()), worst


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_plain_transformers(vision, family):
    folder = vision(family)
    for dtype, packing, bound in (("float64", True, 1e-6), ("float64", False, 1e-6), ("float32", True, 1e-4)):
        policy, tokenizer, sequences = loaded(folder, dtype=dtype, packing=packing)
        assert policy.packed == (packing and family not in ("gemma3", "paligemma"))
        if dtype == "float32" or packing:
            expected = plain(folder, reader_of(tokenizer).processor, sequences, getattr(torch, dtype))
        logps, gradients = differences(policy, sequences, expected)
        assert logps <= bound, (family, dtype, packing)
        assert gradients <= bound, (family, dtype, packing)


def test_a_prompt_is_shared_only_by_rows_with_the_same_picture(vision):
    policy, _, sequences = loaded(vision("qwen2.5-vl"), dtype="float64")
    first, other, same = sequences[:3]
    assert first.ids.tolist()[:-4] == other.ids.tolist()[:-4], "the prompts are to have equal tokens"
    together = pack_sequences([first, same], True)
    apart = pack_sequences([first, other], True)
    prompt = int(first.trained.nonzero()[0])
    assert len(together.ids) == len(first) + len(same) - prompt
    shared = int(first.image_places[0])  # what stands before the picture; a shorter trunk is not worth it
    assert len(apart.ids) in (len(first) + len(other), len(first) + len(other) - shared)
    with torch.no_grad():
        alone = [policy([one], TokenQuery())["logps"] for one in (first, other)]
        both = policy([first, other], TokenQuery())["logps"]
    assert torch.allclose(both, torch.cat(alone), atol=1e-9)
    assert (alone[0] - alone[1]).abs().max() > 1e-6, "the picture is to matter"


def test_a_key_that_forgets_the_picture_is_noticed(vision, monkeypatch):
    policy, _, (first, other, *_) = loaded(vision("qwen2.5-vl"), dtype="float64")
    with torch.no_grad():
        alone = [policy([one], TokenQuery())["logps"] for one in (first, other)]
        monkeypatch.setattr(Sequence, "content", property(lambda sequence: sequence.ids))
        both = policy([first, other], TokenQuery())["logps"]
    assert (both - torch.cat(alone)).abs().max() > 1e-6


def test_a_sampled_placeholder_is_text(vision):
    policy, _, sequences = loaded(vision("qwen2.5-vl"), dtype="float64")
    for sequence in sequences[:1] + sequences[3:4]:  # with a picture, and of text alone
        token = sequences[0].images[0].token
        ids = torch.cat([sequence.ids, torch.tensor([token, 7])])
        grown = Sequence(ids, torch.cat([sequence.trained, torch.ones(2).bool()]), images=sequence.images)
        with torch.no_grad():
            packed = policy([grown, sequences[1]], TokenQuery())["logps"][: grown.count]
            embeddings = policy.inner.get_input_embeddings()
            before = policy([sequence], TokenQuery())["logps"]
            assert torch.allclose(packed[: sequence.count], before, atol=1e-9)
            # what follows must have read the token's own row of the embedding
            embeddings.weight[token] += 1.0
            changed = policy([grown, sequences[1]], TokenQuery())["logps"][: grown.count]
            embeddings.weight[token] -= 1.0
        if policy.inner.get_output_embeddings().weight is not embeddings.weight:
            assert torch.allclose(changed[: sequence.count], before, atol=1e-9)
            assert (changed[-1] - packed[-1]).abs() > 1e-6


def test_a_family_that_takes_no_features_is_refused(vision):
    """Before transformers 5.18 ``**kwargs`` swallowed them, and a row was read as if it had no picture."""
    policy, _, sequences = loaded(vision("llava"))
    policy.images.accepted = policy.images.accepted - {"mm_encoder_outputs"}
    with pytest.raises(ModelError, match=r"takes no features of images; families do since 5\.18\. Upgrade with: pip"):
        policy.hidden(sequences)

"""Episodes whose earlier turns the chat template rewrites: each turn is trained behind what it was sampled behind."""

import json

import pytest
import torch
from posttrain import Environment, Observation, api
from posttrain.contract.generation import Completion, Episode
from posttrain.contract.rollout import Rollout
from posttrain.contract.views import Example
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.find_head import find_head
from posttrain.network.token_model import TokenModel, build_views
from posttrain.training.micro_batches import micro_batches
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

#: Leaves of earlier turns what stands before the last g.
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('g')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
TALKS = [{"prompt": [{"role": "user", "content": text}]} for text in ("ab", "abc")]


class Echo(Environment):
    """Answers twice with a text of its own."""

    turns = 0

    def step(self, message):
        self.turns += 1
        return Observation("hh", float(message["content"].count("a")), done=self.turns == 3)


def by_transformers(model, ids, trained):
    """Log-probs of the trained tokens, without a cache and alone."""
    with torch.no_grad():
        logps = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    return logps.gather(1, ids[1:, None])[:, 0][trained[1:]]


def episode():
    """Prompt 4 5, turn 6 7; then the template shows 4 8, and the model writes 9 10 11."""
    ids = torch.tensor([6, 7, 4, 8, 9, 10, 11])
    sampled = torch.tensor([1, 1, 0, 0, 1, 1, 1]).bool()
    turn = torch.tensor([0, 0, 1, 1, 1, 1, 1])
    made = Episode(torch.tensor([4, 5]), sampled, turn, [0.0, 1.0], [], "done", breaks=(2,))
    return Rollout(0, torch.tensor([4, 5]), Completion(ids, torch.zeros(7), True, "", episode=made), {}, 1.0)


@pytest.mark.parametrize("packed", [True, False])
def test_the_texts_of_an_episode_see_nothing_of_each_other_and_make_one_row(packed):
    found = Rollout.of(episode().kept(), 0).sequence()
    assert (found.ids.tolist(), found.breaks) == ([4, 5, 6, 7, 4, 8, 9, 10, 11], (4,))
    texts = [(one.ids.tolist(), one.trained.int().tolist()) for one in found.texts]
    assert texts == [([4, 5, 6, 7], [0, 0, 1, 1]), ([4, 8, 9, 10, 11], [0, 0, 1, 1, 1])]
    model = tiny_model().eval()
    plain = Rollout(0, torch.tensor([4, 5]), Completion(torch.tensor([9, 4]), torch.zeros(2), True, ""), {}, 0.0)
    sequences = [found, plain.sequence()]
    policy = TokenModel(model, find_head(model), packed=packed)
    results = policy(sequences, TokenQuery())
    view = build_views([Example({"completion": [one]}) for one in sequences], results).completion
    first, second = ([4, 5, 6, 7], [0, 0, 1, 1]), ([4, 8, 9, 10, 11], [0, 0, 1, 1, 1])
    rows = [(torch.tensor(ids), torch.tensor(trained).bool()) for ids, trained in (first, second)]
    expected = torch.cat([by_transformers(model, *row) for row in rows])  # (5,)
    assert view.mask.tolist() == [[True] * 5, [True] * 2 + [False] * 3]
    torch.testing.assert_close(view.logps[0], expected, atol=1e-5, rtol=0)


def test_a_pass_holds_as_many_tokens_as_its_texts_have():
    examples = [Example({"completion": [episode().sequence()]}) for _ in range(2)]
    assert [len(one) for one in micro_batches(examples, 18, None, packed=True)] == [2]
    assert [len(one) for one in micro_batches(examples, 20, None, packed=False)] == [2]  # four texts of five columns
    assert [len(one) for one in micro_batches(examples, 19, None, packed=False)] == [1, 1]


def test_a_run_trains_each_turn_behind_what_the_template_shows(tmp_path, capsys):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.response_schema = {"type": "object"}
    # the tiny model cannot write <think>: the first letter that it writes is read as its thinking
    tokenizer.parse_response = lambda text: {"content": f"{text[:1]}g{text[1:]}", "reasoning_content": text[:1]}

    def run(**changes):
        own = {"model": tiny_model(), "tokenizer": tokenizer, "data": TALKS, "environment": Echo, "steps": 2}
        own |= {"group_size": 4, "batch_size": 2, "max_new_tokens": 6, "learning_rate": 0.0, "updates_per_rollout": 2}
        quiet = {"progress": "quiet", "cache": "off", "device": "cpu", "output": str(tmp_path / f"{len(changes)}")}
        return api.train("grpo", **(own | quiet | {"rewritten_history": "split"} | changes))

    found = run(progress="plain")
    said = capsys.readouterr()
    assert "episodes are split, so that each turn is trained behind what the template shows" in said.out + said.err
    lines = [json.loads(line) for line in (found.path / "episodes.jsonl").read_text().splitlines()]
    examples = found.source.buffer
    assert len(examples) == len(lines) == 8  # an episode is one example, however many texts it has
    split = 0
    for example, line in zip(examples, lines, strict=True):
        (sequence,) = example.sequences["completion"]
        turns = [one["content"] for one in line["messages"] if one["role"] == "assistant"]
        assert len(sequence.texts) == len(turns)
        split += len(turns) > 1
        shown = line["prompt"][0]["content"]
        expected = []
        for text, said in zip(sequence.texts, turns, strict=True):
            assert text.ids[~text.trained].tolist() == tokenizer(shown)["input_ids"]
            shown += f"{said.split('g')[-1]}{tokenizer.eos_token}hh"
            written = tokenizer.decode(text.ids[text.trained])
            assert written.removesuffix(tokenizer.eos_token) == ("" if said == "g" else said[:1] + said[2:])
            expected.append(by_transformers(found.policy.inner.eval(), text.ids, text.trained))
        torch.testing.assert_close(sequence.per_token["sampled_logps"], torch.cat(expected), atol=1e-5, rtol=0)
    assert split > 2
    kept, whole = run(save_every=1, steps=1, learning_rate=1e-3), run(steps=2, learning_rate=1e-3)
    own = {"model": tiny_model(), "tokenizer": tokenizer, "data": TALKS, "environment": Echo}
    resumed = api.resume(kept.path, steps=2, **own)
    assert [one["loss"] for one in resumed.metrics] == [one["loss"] for one in whole.metrics]

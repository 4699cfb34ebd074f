"""Episodes whose environment shows pictures: the sampler's log-probs are the trainer's, and no picture is mixed up."""

import json
import random
import shutil

import pytest
import torch
from PIL import Image, ImageDraw
from posttrain import Environment, Observation, api
from posttrain.contract.generation import Completion, Episode, Sampling
from posttrain.contract.images import printable_value
from posttrain.contract.rollout import Rollout
from posttrain.contract.views import Sequence
from posttrain.data.tokens.conversation import Conversation
from posttrain.data.tokens.turns import Turns
from posttrain.environments.tools import Tool, run_calls
from posttrain.errors import DataError, ModelError
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.local.prefill import Network
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.image_reader import reader_of
from posttrain.rollouts.episode_rows import rows_of
from posttrain.settings import Settings
from posttrain_testkit.environments import check_environment
from posttrain_testkit.tiny_vision import FAMILIES, picture, shown

OPTIONS = {
    "group_size": 4,
    "max_new_tokens": 8,
    "stop": list("abcdefghijklmnopq"),
    "batch_size": 2,
    "steps": 2,
    "learning_rate": 1e-2,
    "schedule": "constant",
    "progress": "quiet",
    "report": False,
    "cache": "off",
    "device": "cpu",
    "max_turns": 3,
    "train_vision": "all",
}
ROWS = [{"prompt": [shown("look ", seed)], "seeds": [seed + 10, seed + 20]} for seed in (1, 2, 3)]
ROWS.append({"prompt": [{"role": "user", "content": "hello"}], "seeds": [5, 6]})


class Album(Environment):
    """Shows a picture after each turn, drawn over the one before; worth the letters a among the first four."""

    def reset(self, row, seed):
        self.seeds = list(row["seeds"])
        self.canvas = picture(0)
        return [{"role": "user", "content": [{"type": "image", "image": picture(9)}, {"type": "text", "text": "go"}]}]

    def step(self, message):
        self.canvas.paste(picture(self.seeds.pop(0)))
        content = [{"type": "image", "image": self.canvas}, {"type": "text", "text": "and"}]
        worth = message["content"][:4].count("a") / 4
        return Observation([{"role": "user", "content": content}], worth, done=not self.seeds)


@pytest.fixture
def train(vision, tmp_path):
    calls = iter(range(100))

    def call(method="grpo", family="llava", **changes):
        output = str(tmp_path / f"run-{next(calls)}")
        own = {"model": vision(family), "data": ROWS, "environment": Album, "output": output}
        return api.train(method, **(OPTIONS | own | changes))

    return call


def series(run):
    return [[line[name] for name in ("loss", "reward", "grad_norm") if name in line] for line in run.metrics]


def same_log_probs(run):
    """Compare the sampler's log-probs with one pass over each episode alone; return the numbers of its images."""
    counts = []
    for example in run.source.buffer:
        (sequence,) = example.sequences["completion"]
        assert len(sequence.image_places) == sum(image.tokens for image in sequence.images)
        assert not sequence.trained[sequence.image_places].any()
        with torch.no_grad():
            alone = run.policy.eval()([sequence], TokenQuery())["logps"]
        torch.testing.assert_close(sequence.per_token["sampled_logps"], alone, rtol=0, atol=2e-5)
        counts.append(len(sequence.images))
    return counts


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_of_the_sampler_are_the_trainers(train, family):
    run = train(family=family, updates_per_rollout=2, learning_rate=0.0)
    assert max(same_log_probs(run)) > 2, "no episode went beyond its first turn"
    split = any(example.sequences["completion"][0].breaks for example in run.source.buffer)
    assert split == (family == "paligemma")  # it reads a prompt in both directions: each turn is a text of its own


def test_separate_texts_of_an_episode_have_their_own_pictures(train, tmp_path):
    """The template leaves words out of earlier turns, so each turn is another text, which shows all pictures again."""
    (tmp_path / "template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}"
        "{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}{% else %}{{ m['content'].split('g')[-1] }}"
        "{% endif %}{% else %}{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    seen = []

    def count(completions, images, **_):
        seen.extend(len(own) for own in images)
        return [0.0 for _ in completions]

    own = {"chat_template": str(tmp_path / "template.jinja"), "rewritten_history": "split", "reward": [count]}
    own |= {"stop": list("hijklmnopqrstuvwxyz"), "max_new_tokens": 16}
    run = train(updates_per_rollout=2, learning_rate=0.0, **own)
    counts = same_log_probs(run)
    assert any(example.sequences["completion"][0].breaks for example in run.source.buffer)
    assert max(counts) > max(seen), "no picture was shown again"
    assert set(seen) <= {1, 2, 3}


@pytest.mark.parametrize("method", ["rloo", "ppo", "turn-ppo"])
def test_methods_learn_from_pictures_of_an_environment_unchanged(train, method):
    run = train(method)
    assert all(line["loss"] == line["loss"] for line in run.metrics)
    assert run.metrics[0]["turns"] > 1


def test_rewards_get_the_pictures_as_they_were_shown(train):
    found = []

    def see(completions, images, messages, **_):
        for own, talk in zip(images, messages, strict=True):
            found.append([(one.size, one.tobytes()) for one in own])
            found[-1].append(sum(isinstance(one["content"], list) for one in talk))
        return [0.0 for _ in completions]

    run = train(reward=[see], data=ROWS[:1], batch_size=1)
    expected = [(one.size, one.tobytes()) for one in map(picture, (1, 9, 11))]
    assert len(found) == 8
    for *pictures, answers in found:
        assert pictures == expected[: len(pictures)]
        assert len(pictures) == 2 + (answers > 0)  # what ends an episode is not shown to the model
    lines = (run.path / "episodes.jsonl").read_text().splitlines()
    parts = [json.loads(line)["messages"][-1]["content"] for line in lines]
    assert [{"type": "image"}, {"type": "text", "text": "and"}] in parts
    with pytest.raises(DataError, match="show pictures that were no files"):
        rows_of(run.path, "kto")


def test_a_resumed_run_has_the_pictures_of_its_episodes(train):
    whole = train(steps=4, updates_per_rollout=4, save_every=2)
    again = whole.path.with_name("again")
    shutil.copytree(whole.path, again)
    shutil.rmtree(again / "checkpoints" / "step-4")
    resumed = api.resume(again, data=ROWS, environment=Album)
    assert series(resumed) == series(whole)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.fixture
def loaded(vision):
    def call(family):
        settings = Settings(model=vision(family))
        tokenizer = load_tokenizer(vision(family), settings.model)
        return load_policy(vision(family), tokenizer, settings.model).policy.eval(), tokenizer

    return call


def played(generator, tokenizer, seeds, monkeypatch=None):
    """Sample two turns, the second after a picture; return the texts with what was sampled, and how many continued."""
    reader, resumed = reader_of(tokenizer), []
    if monkeypatch is not None:
        plain = Network.resume
        monkeypatch.setattr(Network, "resume", lambda *a: (resumed.append(len(a[1])), plain(*a))[1])
    found = {}
    with generator.session(Sampling(6, continued=True, stop=tuple("abcdefghijklmnopqrstuvwxyz"))) as session:
        for turn in (0, 1):
            for place, own in enumerate(seeds):
                image, text = reader.read(picture(own[turn]), turn)
                ids = torch.tensor(tokenizer(f"x{text}y", add_special_tokens=False)["input_ids"])
                before = found.get(place)
                start = 0 if before is None else len(before)
                images = (*(before.images if before else ()), type(image)(*_values(image), start=start))
                whole = torch.cat([before.ids, ids]) if before is not None else ids
                found[place] = Sequence(whole, torch.zeros(len(whole), dtype=torch.bool), images=images)
            session.ask([(place, one, 3, 9) for place, one in found.items()])
            done = []
            while session.busy:
                done += session.advance()
            for place, completion in done:
                one = found[place]
                trained = torch.arange(len(one) + len(completion.ids)) >= len(one)
                ids = torch.cat([one.ids, completion.ids])
                found[place] = Sequence(ids, trained, {"logps": completion.logps}, images=one.images)
    return [found[place] for place in sorted(found)], sum(resumed)


def _values(image):
    return image.source, image.digest, image.tokens, image.token, image.place


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl", "gemma3"])
def test_a_turn_continues_from_its_own_picture(loaded, monkeypatch, family):
    """Both episodes have the same tokens; a prefix cache that compares them alone takes the other's picture."""
    policy, tokenizer = loaded(family)
    generator = HfGenerator(policy.model, tokenizer, {2}, 8)
    texts, resumed = played(generator, tokenizer, [(1, 2), (3, 2), (1, 4)], monkeypatch)
    assert resumed == 2 + 3, "beside the trial's two texts none continued from what was read of the last turn"
    assert len({tuple(one.ids.tolist()) for one in texts}) < 3
    assert len({tuple(one.content.tolist()) for one in texts}) == 3
    for one in texts:
        with torch.no_grad():
            alone = policy([one], TokenQuery())["logps"]
        torch.testing.assert_close(one.per_token["logps"], alone, rtol=0, atol=2e-5)
    again = HfGenerator(policy.model, tokenizer, {2}, 8, prefix_tokens=0)
    for one, other in zip(texts, played(again, tokenizer, [(1, 2), (3, 2), (1, 4)])[0], strict=True):
        assert one.ids.tolist() == other.ids.tolist()


@pytest.mark.parametrize("family", ["llava", "idefics3", "qwen2.5-vl"])
def test_a_sampled_placeholder_before_a_picture_is_text(loaded, family):
    policy, tokenizer = loaded(family)
    reader = reader_of(tokenizer)
    (first, text), (second, _) = reader.read(picture(1), 0), reader.read(picture(2), 1)
    piece = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    said = torch.tensor([20, reader.token, 21])  # what the model wrote
    ids = torch.cat([piece, said, piece, said])
    start = len(piece) + len(said)
    late = type(second)(*_values(second), start=start)
    trained = torch.zeros(len(ids), dtype=torch.bool)
    trained[len(piece) : start] = trained[-len(said) :] = True
    own = Sequence(ids, trained, images=(first, late))
    assert not own.image_mask[len(piece) + 1]
    assert int(own.image_mask.sum()) == first.tokens + second.tokens
    folded = reader.folded(ids.tolist(), [first, late])
    assert folded.count(reader.token) == 2  # those of the images; the model's own would be taken for one
    other = next(one for one in folded if one not in ids)
    expanded = [other if at in (len(piece) + 1, len(ids) - 2) else one for at, one in enumerate(ids.tolist())]
    assert reader.restored(expanded, ids.tolist()) == ids.tolist()
    assert reader.restored(expanded[1:], ids.tolist()) == expanded[1:]
    with torch.no_grad():
        found = policy([own], TokenQuery())["logps"]
        begun = policy([own.part(0, start)], TokenQuery())["logps"]
        # another picture later changes what follows it, and nothing before
        other = type(second)(*_values(reader.read(picture(3), 1)[0]), start=start)
        changed = policy([Sequence(ids, trained, images=(first, other))], TokenQuery())["logps"]
    torch.testing.assert_close(found[:3], begun, rtol=0, atol=1e-5)
    torch.testing.assert_close(changed[:3], begun, rtol=0, atol=1e-5)
    assert not torch.allclose(changed[3:], found[3:], rtol=0, atol=1e-6)


def test_a_picture_that_a_tool_returns_is_shown(loaded):
    def draw(number: int) -> Image.Image:
        """Draw it.

        Args:
            number: What to draw.
        """
        return picture(number)

    call = {"type": "function", "function": {"name": "draw", "arguments": {"number": 3}}}
    answers = run_calls([call], {"draw": Tool.of(draw)})
    assert answers[0]["content"][0]["image"].tobytes() == picture(3).tobytes()
    _, tokenizer = loaded("llava")
    settings = Settings(model="x").data
    turns = Turns(tokenizer, settings, {2}, None)
    talk = Conversation.of_row({"prompt": [{"role": "user", "content": "a"}]}, settings, turns.reader)
    kept, numbered = talk.joined(answers)
    said, shown_ = turns.plain(
        {"role": "assistant", "content": "", "tool_calls": [call]}, numbered, torch.tensor([9, 2])
    )
    piece = turns.between(talk.history, said, shown_, torch.tensor([9, 2]), talk.sources)
    assert [image.place for image in piece.images] == [0]
    assert int(piece.image_mask.sum()) == piece.images[0].tokens
    assert printable_value(kept)[0]["content"] == [{"type": "image"}]


@pytest.mark.parametrize(
    ("part", "error", "words"),
    [
        (
            {"type": "image", "image": "http://a.b/c.png"},
            DataError,
            "environment: image 'http://a.b/c.png' is an address",
        ),
        ({"type": "image", "image": "nowhere.png"}, DataError, "the environment: image 'nowhere.png': cannot be read"),
        ({"type": "image"}, DataError, "the environment: a message has an image part without an image"),
        ({"type": "image", "image": b"no picture"}, DataError, "image of 10 bytes: cannot be read"),
        ({"type": "audio", "audio": b""}, ModelError, "audio is not supported"),
    ],
)
def test_what_cannot_be_shown_is_refused(train, part, error, words):
    class Shows(Album):
        def step(self, message):
            return Observation([{"role": "user", "content": [part]}], 0.0)

    with pytest.raises(error, match=words):
        train(environment=Shows, steps=1)


def test_a_model_of_text_and_one_that_reads_prompts_both_ways_are_refused(train):
    from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

    plain = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": ROWS[3:]}
    with pytest.raises(ModelError, match="The environment shows an image, and the model reads text alone"):
        train(**plain, train_vision="projector")


class Squares(Environment):
    """Shows two pictures, one after the other; worth 1 for the number of red squares on both, 0.3 for any digit."""

    def reset(self, row, seed):
        self.counts, self.turns = row["counts"], 0
        return [{"role": "user", "content": [{"type": "image", "image": drawn(self.counts[0])}]}]

    def step(self, message):
        self.turns += 1
        if self.turns == 1:
            return Observation([{"role": "user", "content": [{"type": "image", "image": drawn(self.counts[1])}]}])
        said = message["content"].strip()[:1]
        return Observation("", float(said == str(sum(self.counts))) or 0.3 * said.isdigit(), done=True)


def drawn(count):
    made = Image.new("RGB", (16, 16), "white")
    for cell in range(count):
        x, y = 4 * (cell % 4), 4 * (cell // 4)
        ImageDraw.Draw(made).rectangle((x, y, x + 3, y + 3), fill=(230, 30, 30))
    return made


def test_a_tiny_model_learns_to_count_over_two_pictures(train):
    dice = random.Random(0)
    rows = [
        {"prompt": [{"role": "user", "content": "red?"}], "counts": [dice.randint(0, 2), dice.randint(0, 2)]}
        for _ in range(32)
    ]
    answers = list("abcdefghijklmnopqrstuvwxyz0123456789")  # one letter is a turn
    options = {"stop": answers, "max_new_tokens": 1, "max_turns": 2, "batch_size": 4, "group_size": 16, "steps": 20}
    run = train(environment=Squares, data=rows, **options)
    rewards = [line["reward"] for line in run.metrics]
    assert sum(rewards[-6:]) / 6 > sum(rewards[:6]) / 6 + 0.1


def test_an_environment_with_pictures_is_played_by_the_check_and_in_its_own_process(tmp_path, train):
    (tmp_path / "album.py").write_text(
        "from posttrain import Environment, Observation\n"
        "from posttrain_testkit.tiny_vision import picture\n\n\n"
        "class Album(Environment):\n"
        "    @classmethod\n"
        "    def rows(cls, size=4, seed=0):\n"
        "        return [{'prompt': [{'role': 'user', 'content': 'look'}]} for _ in range(size)]\n\n"
        "    def reset(self, row, seed):\n"
        "        self.canvas, self.turns = picture(1), 0\n\n"
        "    def step(self, message):\n"
        "        self.turns += 1\n"
        "        self.canvas.paste(picture(self.turns))\n"
        "        parts = [{'type': 'image', 'image': self.canvas}]\n"
        "        return Observation([{'role': 'user', 'content': parts}], 0.5, done=self.turns == 2)\n"
    )
    from posttrain.assembly.environment import find_task
    from posttrain.settings import EpisodeSettings

    spec = f"{tmp_path / 'album.py'}:Album"
    assert check_environment(find_task(EpisodeSettings(environment=spec)).make)["episodes"] == 3
    here = train(environment=spec, data=None, steps=1)
    apart = train(environment=spec, data=None, steps=1, environment_process=True)
    assert series(here) == series(apart)


def test_a_kept_episode_has_its_pictures_again(loaded, tmp_path):
    """A checkpoint holds plain values alone; pictures come back with their pixels, and where their texts begin."""
    _, tokenizer = loaded("llava")
    image, text = reader_of(tokenizer).read(picture(4), 0)
    piece = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = torch.cat([torch.tensor([20]), piece, torch.tensor([21])])
    sampled = torch.tensor([True, *[False] * len(piece), True])
    images = (type(image)(*_values(image), start=2),)
    said = [{"role": "user", "content": [{"type": "image", "image": picture(4)}]}]
    episode = Episode(torch.tensor([9]), sampled, torch.zeros(len(ids)).long(), [0.0, 1.0], said, "done", images=images)
    completion = Completion(ids, torch.zeros(len(ids)), True, "", episode=episode)
    whole = Rollout(0, torch.tensor([9]), completion, {}, 1.0, images=images)
    torch.save(whole.kept(), tmp_path / "kept")
    found = Rollout.of(torch.load(tmp_path / "kept", weights_only=True), 0)
    for again in (found.images, found.completion.episode.images):
        assert [(one.digest, one.start, one.picture().tobytes()) for one in again] == [
            (image.digest, 2, picture(4).tobytes())
        ]
    assert found.sequence().content.tolist() == whole.sequence().content.tolist()

"""Pictures of rows: how they are named, what a sequence keeps of them, and what is refused."""

import base64
import io
import json
import pickle

import numpy as np
import pytest
import torch
from posttrain.contract.images import open_picture
from posttrain.contract.views import Sequence
from posttrain.data import prepare, read_rows, stream
from posttrain.errors import DataError, ModelError
from posttrain.models.load import load_tokenizer
from posttrain.models.reference_cache import ReferenceCache
from posttrain.network.image_reader import reader_of
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_tokenizer
from posttrain_testkit.tiny_vision import answered, picture, shown

ASKED = {"type": "text", "text": "what is it"}


def encoded(seed, kind="PNG"):
    stream = io.BytesIO()
    picture(seed).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def made(vision):
    def made(rows, *accepted, cache=None, family="qwen2.5-vl", **options):
        settings = Settings(model=vision(family), **options)
        tokenizer = load_tokenizer(settings.model.model, settings.model)
        found = read_rows(rows, accepted or ("language-modeling",), settings.data)
        return prepare(found, tokenizer, settings.data, {2}, cache)

    return made


def only(prepared, place=0):
    return next(iter(prepared[place].sequences.values()))[0]


def row(*parts, **columns):
    return {"messages": [{"role": "user", "content": list(parts)}, answered("abc")], **columns}


def test_every_way_to_name_a_picture_gives_the_same_tokens_and_pixels(made, tmp_path):
    data = encoded(1)
    (tmp_path / "one.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    bare = {"type": "image"}
    rows = [
        row({"type": "image", "image": picture(1)}, ASKED),
        row({"type": "image", "image": data}, ASKED),
        row({"type": "image", "path": str(tmp_path / "one.png")}, ASKED),
        row({"type": "image", "image": "one.png"}, ASKED),  # in image-folder
        row({"type": "image", "image": f"file://{tmp_path}/one.png"}, ASKED),
        row({"type": "image", "base64": text}, ASKED),
        row({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}, ASKED),
        row({"type": "image", "image": {"bytes": data, "path": None}}, ASKED),
        row(bare, ASKED, images=[data]),
        row(bare, ASKED, image=picture(1)),
        row(ASKED, images=[data]),  # without a part: before what the user says first
        {"messages": [{"role": "user", "content": "what is it"}, answered("abc")], "image": {"bytes": data}},
    ]
    prepared = made(rows, image_folder=str(tmp_path))
    wanted = only(prepared)
    assert len(wanted.images) == 1
    for place in range(len(rows)):
        found = only(prepared, place)
        assert found.ids.tolist() == wanted.ids.tolist(), rows[place]
        assert np.array_equal(np.asarray(found.images[0].picture()), np.asarray(picture(1)))
    digests = {only(prepared, place).images[0].digest for place in range(1, len(rows) - 3)}
    assert len(digests) == 1  # one file is one picture, however it is named


def test_columns_of_files(made, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = encoded(1)
    (tmp_path / "a.png").write_bytes(data)
    lines = [{"prompt": [{"role": "user", "content": "hm"}], "completion": [answered("b")], "images": ["a.png"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = only(made([str(tmp_path / "rows.jsonl")], "prompt-completion", image_folder=str(tmp_path)))
    cell = {**lines[0], "images": [{"bytes": data, "path": "a.png"}]}
    pq.write_table(pa.Table.from_pylist([cell, {**cell, "images": None}]), tmp_path / "rows.parquet")
    prepared = made([str(tmp_path / "rows.parquet")], "prompt-completion")
    assert only(prepared).ids.tolist() == found.ids.tolist()
    assert not only(prepared, 1).images  # a row of text among them


def test_placeholders_are_never_learnt_and_stand_where_the_processor_puts_them(made):
    prepared = made([{"messages": [shown("a ", 1, " b ", 2), answered("c")]}], train_on="all")
    found = only(prepared)
    token = found.images[0].token
    assert [image.tokens for image in found.images] == [6, 6]
    assert (found.ids == token).sum() == 12
    assert not found.trained[found.ids == token].any()
    assert found.trained[found.ids != token][1:].all()


def test_pictures_are_kept_as_references(made, vision):
    found = only(made([row({"type": "image", "image": picture(1, 320, 320)}, ASKED)]))
    assert found.images[0].tokens < 20  # the processor's own limit: 1024 pixels
    path = only(made([row({"type": "image", "image": encoded(1)}, ASKED)]))
    assert len(pickle.dumps(path)) < len(encoded(1)) + 5000


def test_max_pixels_scales_before_the_processor(made):
    rows = [row({"type": "image", "image": picture(1, 32, 32)}, ASKED)]
    assert only(made(rows)).images[0].tokens == 16
    small = only(made(rows, max_pixels=256))
    assert small.images[0].tokens == 4
    assert small.images[0].digest != only(made(rows)).images[0].digest


def test_the_cache_keeps_references_and_sees_a_changed_file(made, tmp_path):
    (tmp_path / "one.png").write_bytes(encoded(1))
    rows = [row({"type": "image", "path": str(tmp_path / "one.png")}, ASKED)]
    folder = tmp_path / "cache"
    first = only(made(rows, cache=folder))
    (entry,) = folder.iterdir()
    assert sum(file.stat().st_size for file in entry.iterdir()) < 3000
    again = only(made(rows, cache=folder))
    assert again.ids.tolist() == first.ids.tolist()
    assert again.images[0].digest == first.images[0].digest
    (tmp_path / "one.png").write_bytes(encoded(2))
    changed = only(made(rows, cache=folder))
    assert changed.images[0].digest != first.images[0].digest
    assert not torch.equal(changed.content, first.content)


def test_streamed_rows_have_their_pictures(vision):
    settings = Settings(model=vision("qwen2.5-vl"), streaming=True, shuffle=False)
    tokenizer = load_tokenizer(settings.model.model, settings.model)
    rows = read_rows(
        [{"messages": [shown(k, "hm"), answered("a")]} for k in (1, 2)], ("language-modeling",), settings.data
    )
    examples = stream(rows, tokenizer, settings.data, {2}, seed=0)
    sequences = [next(examples).sequences["completion"][0] for _ in range(3)]
    digests = [sequence.images[0].digest for sequence in sequences]
    assert digests[0] == digests[2] != digests[1]


def test_caches_tell_pictures_apart(made):
    prepared = made([{"messages": [shown(k, "what is it"), answered("abc")]} for k in (1, 2)])
    one, two = only(prepared, 0), only(prepared, 1)
    assert one.ids.tolist() == two.ids.tolist()
    cache = ReferenceCache(None)
    cache.logps([one], lambda rows: torch.zeros(one.count))
    assert one in cache
    assert two not in cache
    assert Sequence(one.ids, one.trained) not in cache  # nor is the row without its picture


def test_both_sides_of_a_pair_have_the_pictures_of_the_prompt(made):
    rows = [{"prompt": [shown(1, "hm")], "chosen": [answered("a")], "rejected": [answered("b")]}]
    (example,) = made(rows, "preference")
    chosen, rejected = example.sequences["chosen"][0], example.sequences["rejected"][0]
    assert chosen.images[0].digest == rejected.images[0].digest
    prompt = int(chosen.trained.nonzero()[0])
    assert torch.equal(chosen.content[:prompt], rejected.content[:prompt])


def test_text_has_placeholders_of_its_own(made, vision):
    text = {"prompt": "<|vision_start|><|image_pad|><|vision_end|> what ", "completion": "abc", "image": picture(1)}
    found = only(made([text], "prompt-completion"))
    assert found.images[0].tokens == 6
    lone = {**text, "prompt": "what "}
    with pytest.raises(DataError, match=r"the text has 0 placeholders '<\|image_pad\|>' and 1 images"):
        made([lone], "prompt-completion")
    chat = only(made([lone], "prompt-completion", chat=True))  # a conversation has a place for it
    assert chat.images[0].tokens == 6


def test_paligemma_gets_a_prompt_as_its_processor_writes_it(vision):
    settings = Settings(model=vision("paligemma"))
    tokenizer = load_tokenizer(settings.model.model, settings.model)
    rows = read_rows(
        [{"prompt": "<image>hm", "completion": "abc", "image": picture(1)}], ("prompt-completion",), settings.data
    )
    found = only(prepare(rows, tokenizer, settings.data, {2}, None))
    processor = reader_of(tokenizer).processor
    wanted = processor(text=["<image>hm"], images=[picture(1)], suffix=["abc"], return_tensors="pt")
    assert found.ids.tolist() == wanted["input_ids"][0].tolist()
    assert found.trained.tolist() == wanted["token_type_ids"][0].bool().tolist()


BARE = {"type": "image"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (row(BARE, ASKED), "data row 1: a message has an image part without an image, and the row's column 'images'"),
        (row(BARE, ASKED, images=[encoded(1)] * 2), "the row has 2 images and its messages 1 image parts without one"),
        (
            row({**BARE, "image": "no/such.png"}, ASKED),
            r"data row 1: image 'no/such.png': cannot be read \(No such file",
        ),
        (row({**BARE, "image": b"nothing"}, ASKED), r"image of 7 bytes: cannot be read \(cannot identify image"),
        (row({**BARE, "image": "data:image/png,abc"}, ASKED), "is a data URL without base64"),
        (row({**BARE, "base64": "%%"}, ASKED), "its base64 is broken"),
        (row({**BARE, "image": 7}, ASKED), "image 7: is a int. Expected a path, bytes, a picture of PIL"),
        (row({**BARE, "url": "https://somewhere/a.png"}, ASKED), "is an address. Expected a path, .* --image-urls"),
        ({"messages": [{"role": "user", "content": "a <|image_pad|>"}, answered("b")]}, "the text has 1 placeholders"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_row(made, given, message):
    with pytest.raises(DataError, match=message):
        made([given])


def test_an_address_is_fetched_where_an_option_asks_for_it(made, tmp_path):
    import http.server
    import threading

    data = encoded(1)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        found = only(made([row({**BARE, "url": url}, ASKED)], image_urls=True))
    finally:
        server.shutdown()
        server.server_close()
    assert found.images[0].tokens == 6


@pytest.mark.parametrize("kind", ["audio", "input_audio"])
def test_audio_is_refused_in_one_sentence(made, kind):
    with pytest.raises(ModelError, match=f"^data row 1: the row has '{kind}', and audio is not supported: remove"):
        made([row({"type": kind, kind: "a.wav"}, ASKED)])
    with pytest.raises(ModelError, match=r"^data row 1: the row has 'audios', and audio is not supported: remove"):
        made([row(ASKED, audios=["a.wav"])])


def test_a_model_of_text_refuses_pictures():
    settings = Settings()
    rows = read_rows([row({**BARE, "image": picture(1)}, ASKED)], ("language-modeling",), settings.data)
    with pytest.raises(ModelError, match="loaded as a text model without an image processor"):
        prepare(rows, tiny_tokenizer(), settings.data, {2}, None)


def test_a_picture_is_never_cut(made):
    rows = [{"messages": [shown("long " * 20, 1, "b"), answered("c" * 40)]}]
    length = len(only(made(rows)))
    assert len(only(made(rows, max_length=length - 60))) == length - 60  # text before it gives way
    with pytest.raises(
        DataError, match="with its images, more than the 40 that max-length allows, and a picture is not"
    ):
        made(rows, max_length=40)
    with pytest.raises(DataError, match="none of 1 rows is left"):
        made(rows, max_length=40, truncation="drop")


def test_a_picture_is_turned_as_its_camera_says():
    import PIL.Image

    turned = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture(1).save(turned, "JPEG", exif=exif)
    assert open_picture(turned.getvalue()).size == (20, 24)


def test_samples_of_a_row_have_pictures_of_their_own(made):
    def sample(seed, said):
        return {"prompt": [shown(seed, "what")], "completion": [answered(said)]}

    holder = "<|vision_start|><|image_pad|><|vision_end|>"
    text = {"prompt": f"{holder}what", "completion": "no", "images": [picture(3)]}
    rows = [
        {"forget": sample(1, "no"), "retain": sample(2, "yes")},
        {"forget": text, "retain": text | {"images": [picture(4)]}},
        {"forget": text, "retain": {"prompt": "what", "completion": "text alone"}},
        {"forget": [shown(5, "what"), answered("no")], "retain": [shown("text"), answered("yes")]},
        {"forget": f"{holder}one", "retain": f"{holder}two", "images": [picture(6)]},  # those of the row
        {"forget": text, "retain": {"prompt": text["prompt"], "completion": "of the same prompt"}},
    ]
    digests = [
        [[image.digest for image in prepared[0].sequences[name][0].images] for name in ("forget", "retain")]
        for prepared in (made([one], "forget-retain") for one in rows)
    ]
    alone = made([row({"type": "image", "image": picture(seed)}, ASKED) for seed in range(7)])
    own = [only(alone, place).images[0].digest for place in range(7)]
    assert digests == [
        [[own[1]], [own[2]]],
        [[own[3]], [own[4]]],
        [[own[3]], []],
        [[own[5]], []],
        [[own[6]], [own[6]]],
        [[own[3]], [own[3]]],
    ]


def test_media_in_a_sample_is_refused(made):
    audio = {"type": "audio", "audio": "a.wav"}
    sample = {"prompt": [{"role": "user", "content": [audio, ASKED]}], "completion": [answered("no")]}
    with pytest.raises(ModelError, match="the row has 'audio', and audio is not supported"):
        made([{"forget": sample, "retain": sample}], "forget-retain")

"""Rewards over HTTP are shown the pictures of prompts: a real worker on the loopback address."""

import copy
import json
import threading
from contextlib import contextmanager

import posttrain
import pytest
from posttrain.contract.images import plain_value
from posttrain.errors import RewardError
from posttrain.rewards import load_rewards, score
from posttrain.rewards.worker import ScoreServer
from posttrain.rewards.worker_images import pack_question, unpack_columns
from posttrain_testkit.tiny_vision import picture, shown

IMAGES = [[picture(1)], [], [picture(2), picture(1)], [picture(1)]]


def first_reds(completions, images, **_):
    """A number that only the picture's own pixels give; the picture is drawn over, which no other row may see."""
    found = []
    for own in images:
        found.append(float(sum(one.getpixel((0, 0))[0] for one in own)))
        for one in own:
            one.putpixel((0, 0), (0, 0, 0))
    return found


class Heard(ScoreServer):
    """A worker that remembers its questions."""

    def scores(self, asked):
        self.questions = [*getattr(self, "questions", []), copy.deepcopy(asked)]
        return super().scores(asked)


@contextmanager
def served(monkeypatch, reward):
    monkeypatch.delenv("POSTTRAIN_TOKEN", raising=False)
    server = Heard(load_rewards([reward]), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def worker(monkeypatch):
    with served(monkeypatch, first_reds) as server:
        yield server


def remote(server):
    return load_rewards([f"http://127.0.0.1:{server.server_port}"])


def question(pictures, indices, *places):
    count = len(indices)
    asked = {"interface": 3, "prompts": ["q"] * count, "completions": ["a"] * count}
    columns = {"images": indices, "image": [None] * count}
    return asked | {"columns": columns, "pictures": pictures, "places": list(places)}


BLANK = "data:application/octet-stream;base64,"


def test_a_worker_scores_what_the_pictures_show_and_gets_each_once(worker):
    prompts = [[shown(1, "what")], "text", [shown(2, "and ", 1)], [shown(1, "what")]]
    columns = {"images": IMAGES, "count": [1, 2, 3, 4]}
    total, _ = score(remote(worker), prompts, ["a"] * 4, columns)
    reds = [[one.getpixel((0, 0))[0] for one in own] for own in IMAGES]
    assert total.tolist() == [float(sum(own)) for own in reds]
    assert len({*reds[0], *reds[2]}) == 2  # pictures that the number tells apart
    (asked,) = worker.questions
    assert len(asked["pictures"]) == 2
    assert asked["columns"] == {"images": [[0], [], [1, 0], [0]], "count": [1, 2, 3, 4]}
    assert asked["prompts"][2][0]["content"] == [{"type": "image"}, {"type": "text", "text": "and "}, {"type": "image"}]
    assert asked["interface"] == 2


def test_a_rows_own_column_of_images_arrives_as_the_run_has_it(monkeypatch):
    """Pictures as pictures, bytes as bytes, paths as text; equal ones are sent once, and no two rows share one."""
    file = b"not a picture"
    own = [IMAGES[0][0], {"bytes": file, "path": None}, "shelf.png", [IMAGES[0][0], IMAGES[2][0]]]
    columns = {"images": IMAGES, "image": own, "note": [{"bytes": 1}, None, file, "x"]}
    seen = []

    def reads(completions, image, note, images, **_):
        first, second, third, (fourth, fifth) = image
        seen.append([first.tobytes(), second, third, fourth.tobytes(), fifth.tobytes(), note])
        first.putpixel((0, 0), (0, 0, 0))
        assert fourth.tobytes() == images[0][0].tobytes() == own[0].tobytes()
        return [0.0] * 4

    with served(monkeypatch, reads) as server:
        for rewards in (load_rewards([reads]), remote(server)):
            copied = columns | {"image": [own[0].copy(), *own[1:]]}
            score(rewards, ["q"] * 4, ["a"] * 4, copied)
    assert seen[0] == seen[1]
    (asked,) = server.questions
    assert asked["interface"] == 3
    assert len(asked["pictures"]) == 3
    assert asked["columns"]["image"] == [None, {"bytes": None, "path": None}, "shelf.png", [None, None]]
    assert columns["image"] == own  # the run's own values stay


def test_the_file_of_a_picture_that_is_shown_too_stays_bytes():
    file = plain_value(picture(1))
    asked = {"prompts": ["q"], "completions": ["a"], "columns": {"image": [file]}}
    found = unpack_columns(json.loads(json.dumps(pack_question(asked, [[file]]))))
    assert found["image"] == [file]
    assert found["images"][0][0].tobytes() == picture(1).tobytes()


def test_questions_of_text_are_asked_as_before(worker):
    score(remote(worker), ["q"], ["a"], {"images": [[]]})
    assert worker.questions == [{"interface": 1, "prompts": ["q"], "completions": ["a"], "columns": {"images": [[]]}}]


@pytest.mark.parametrize(
    ("pictures", "indices", "places", "said"),
    [
        (["/etc/hostname"], [[0]], [], "'pictures' are data URLs, such as data:image/png;base64,..."),
        (["http://127.0.0.1:9/a.png"], [[0]], [], "'pictures' are data URLs, such as data:image/png;base64,..."),
        (["data:image/png;base64,AAAA"], [[0]], [], "cannot be read"),
        (["data:image/png;base64,!"], [[0]], [], "its base64 is broken"),
        ([], [[0]], [], "The column 'images' has the index 0, and there are 0 pictures."),
        (["data:,"], [[-1]], [], "The column 'images' has the index -1, and there are 1 pictures."),
        (["data:,"], [[True]], [], "The column 'images' has the index True, and there are 1 pictures."),
        ([], [0], [], "The column 'images' has a list of indices into 'pictures' for each completion."),
        ([], [[]], [[["image", 0], 0]], "The column 'image' has the index 0, and there are 0 pictures."),
        ([BLANK], [[]], [[["image", 1], 0]], "The columns have no place ['image', 1] for a picture."),
        ([BLANK], [[0]], [[["images", 0], 0]], "The columns have no place ['images', 0] for a picture."),
        ([BLANK], [[]], [[["image"], 0]], "'places' are pairs of a path"),
        ([BLANK], [[]], [0], "'places' are pairs of a path"),
    ],
)
def test_a_worker_opens_no_file_for_a_client(worker, pictures, indices, places, said):
    from posttrain.servers.endpoint import Endpoint, Refused

    with pytest.raises(Refused, match="422: ") as raised:
        Endpoint(f"http://127.0.0.1:{worker.server_port}/v1").post("/score", question(pictures, indices, *places))
    assert said.rstrip(".") in str(raised.value)


def test_small_files_of_huge_pictures_are_refused(worker, monkeypatch):
    monkeypatch.setattr("posttrain.rewards.worker_images._MOST_PIXELS", 24 * 20)
    assert score(remote(worker), ["q"] * 2, ["a"] * 2, {"images": [[picture(1)]] * 2})[0].tolist() != [0.0, 0.0]
    with pytest.raises(RewardError, match=r"422: The pictures have more than 480 pixels together\. Send fewer"):
        score(remote(worker), ["q"], ["a"], {"images": [[picture(1), picture(2)]]})


def test_a_question_that_is_too_long_is_not_sent(worker):
    rewards = remote(worker)
    rewards[0].function.endpoints[0].largest = 1000
    with pytest.raises(RewardError) as raised:
        score(rewards, ["q"], ["a"], {"images": [[picture(1)]]})
    said = str(raised.value)
    assert "gives no scores: 413: a question has at most 1000 bytes, this one has " in said
    assert said.endswith("Ask about fewer completions at a time (--batch-size), or use smaller pictures.")
    assert not hasattr(worker, "questions")


def test_it_rewards_a_run(worker, vision, tmp_path):
    rows = [{"prompt": [shown(seed, "what")]} for seed in (1, 2)]
    options = {"batch_size": 2, "steps": 1, "group_size": 2, "max_new_tokens": 2, "verify_saved": False}
    options |= {"progress": "quiet", "report": False, "device": "cpu"}
    address = f"http://127.0.0.1:{worker.server_port}"
    posttrain.train("rloo", model=vision("llava"), data=rows, reward=address, output=str(tmp_path), **options)
    (asked,) = worker.questions
    assert sorted(len(own) for own in asked["columns"]["images"]) == [1] * 4
    assert len(asked["pictures"]) == 2

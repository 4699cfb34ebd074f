"""A teacher behind a server that speaks vLLM's completions protocol with prompt_logprobs."""

import itertools
import math

import pytest
import torch
from posttrain.contract.views import Sequence
from posttrain.distillation.teacher_server import ServerTeacher, TeacherServer, spread
from posttrain.errors import ModelError

VOCABULARY = 6
#: After token t come the tokens in this order of probability, shifted by t.
PROBABILITIES = [0.4, 0.3, 0.15, 0.1, 0.04, 0.01]


def logp(previous, token):
    return math.log(PROBABILITIES[(token - previous) % VOCABULARY])


def vllm(path, payload, limit=20, size=VOCABULARY):
    """What vLLM answers: the k likeliest tokens, and the token itself where it is not among them, in any order."""
    if path == "/v1/models":
        return 200, {"data": [{"id": "big"}]}
    k = payload["prompt_logprobs"]
    if k > limit:
        message = f"Requested prompt logprobs of {k}, which is greater than max allowed: {limit}"
        return 400, {"error": {"message": message}}
    ids = payload["prompt"]
    rows = [None]
    for previous, token in itertools.pairwise(ids):
        likely = sorted(range(size), key=lambda t: (t - previous) % size)[:k]
        chosen = [token, *(t for t in likely if t != token)]
        rows.append({str(t): {"logprob": math.log(PROBABILITIES[(t - previous) % size]), "rank": 1} for t in chosen})
    return 200, {"choices": [{"text": "x", "prompt_logprobs": rows}]}


def text_of(call):
    with pytest.raises(ModelError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_likeliest_tokens_and_the_next(serve):
    fake = serve(vllm)
    teacher = TeacherServer(fake.url, None, top_k=2, vocabulary=VOCABULARY)
    found = teacher.top_logps([torch.tensor([1, 2, 5, 5]), torch.tensor([3]), torch.tensor([0, 3])])
    assert [(tuple(i.shape), tuple(p.shape), i.dtype, p.dtype) for i, p in found] == [
        ((n, 3), (n, 3), torch.int64, torch.float32) for n in (3, 0, 1)
    ]
    # After 1: 1 then 2, and the next is 2; after 2: 2, 3, and the next is 5; after 5: 5, 0, and the next is 5.
    assert found[0][0].tolist() == [[1, 2, 2], [2, 3, 5], [5, 0, 5]]
    assert found[0][1].exp().tolist() == [
        pytest.approx(row, abs=1e-6) for row in ([0.4, 0.3, 0.3], [0.4, 0.3, 0.1], [0.4, 0.3, 0.4])
    ]
    assert found[2][0].tolist() == [[0, 1, 3]]
    assert fake.asked[-1].items() >= {"model": "big", "max_tokens": 1, "prompt_logprobs": 2}.items()
    assert [1, 2, 5, 5] in [payload["prompt"] for payload in fake.asked]


def test_a_whole_distribution_of_what_is_known():
    """.7 is known, .3 is left for the three others; in the second row .8 for two."""
    indices = torch.tensor([[4, 0, 4], [1, 5, 2]])
    logps = torch.tensor([[0.4, 0.3, 0.4], [0.6, 0.1, 0.1]]).log()
    whole = spread(indices, logps, 5 + 1)
    assert whole.exp().tolist() == [
        pytest.approx([0.3, 0.075, 0.075, 0.075, 0.4, 0.075]),
        pytest.approx([0.2 / 3, 0.6, 0.1, 0.2 / 3, 0.2 / 3, 0.1]),
    ]
    assert whole.gather(1, indices).equal(logps)  # exactly


def test_a_distribution_with_nothing_left():
    """Rounding may give the known tokens a little more than 1."""
    whole = spread(torch.tensor([[0, 1]]), torch.tensor([[0.5000001, 0.5000001]]).log(), 4)
    assert whole.exp()[0].tolist() == pytest.approx([0.5, 0.5, 5e-10, 5e-10])
    complete = spread(torch.tensor([[1, 0]]), torch.tensor([[0.25, 0.75]]).log(), 2)
    assert complete.exp()[0].tolist() == pytest.approx([0.75, 0.25])
    assert spread(torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3), 7).shape == (0, 7)


def test_with_every_token_known_the_server_is_the_model(serve):
    """k = V: the distribution is the true one, whatever is spread; logits are divided by the temperature."""
    ids, trained = torch.tensor([0, 2, 3, 1]), torch.tensor([False, False, True, True])
    teacher = ServerTeacher(serve(vllm).url, None, VOCABULARY, VOCABULARY, torch.device("cpu"))
    give = teacher.logits([Sequence(ids, trained), Sequence(ids[:2], torch.tensor([False, True]))], 2.0)
    true = torch.tensor([[logp(previous, t) for t in range(VOCABULARY)] for previous in (2, 3, 0)])
    assert torch.allclose(give(slice(0, 3)), true / 2, atol=1e-6)
    assert torch.allclose(give(slice(1, 3)), true[1:] / 2, atol=1e-6)


def test_padding_rows_of_the_teacher_are_left_out(serve):
    """P8: a larger matrix of the same tokeniser; token 5 is beyond the policy's five and has next to nothing."""

    def padded(path, payload):
        status, body = vllm(path, payload)
        for row in body["choices"][0]["prompt_logprobs"][1:] if payload else []:
            row["5"] = {"logprob": -7.0}
            row.pop(str(payload["prompt"][0] + 1), None)
        return status, body

    teacher = TeacherServer(serve(padded).url, "big", top_k=3, vocabulary=5)
    ((indices, logps),) = teacher.top_logps([torch.tensor([0, 2])])
    assert indices.tolist() == [[0, 2, 2, 2]]
    assert logps.exp().tolist() == [pytest.approx([0.4, 0.15, 0.15, 0.15], abs=1e-6)]


def test_a_teacher_with_other_tokens_is_refused(serve):
    fake = serve(vllm)
    teacher = TeacherServer(fake.url, "big", top_k=2, vocabulary=5)
    assert text_of(lambda: teacher.top_logps([torch.tensor([4, 4])])) == (
        f"The teacher at {fake.url} gives token 5 and others like it a probability of 0.3, but the policy has 5 "
        "tokens. A teacher behind a server must have the policy's tokeniser."
    )


def test_mistakes_show_early(serve, nowhere):
    assert text_of(lambda: TeacherServer(nowhere, "big", 2, VOCABULARY)) == (
        f"The teacher at {nowhere} cannot be reached (Connection refused, 2 attempts). Start it with: "
        "vllm serve big --max-logprobs 2"
    )
    fake = serve(lambda path, payload: vllm(path, payload, limit=1))
    assert text_of(lambda: TeacherServer(fake.url, None, 4, VOCABULARY)) == (
        f"The teacher at {fake.url} gives at most 1 log-probs a token, teacher-top-k is 4. Start it with: "
        "vllm serve big --max-logprobs 4"
    )
    assert text_of(lambda: TeacherServer(fake.url, "bog", 1, VOCABULARY)) == (
        f"The teacher at {fake.url} has the models big, not bog. Name one: --teacher-model http://HOST:PORT/v1#MODEL"
    )
    assert text_of(lambda: TeacherServer(fake.url, None, 7, VOCABULARY)) == (
        "teacher-top-k is 7, expected a number from 1 to the vocabulary's 6."
    )


def test_a_server_that_is_not_vllm(serve):
    for body in ({"choices": [{"text": "x"}]}, {"choices": [{"prompt_logprobs": [None]}]}, [7]):
        fake = serve(lambda path, payload, found=body: (200, found) if payload else vllm(path, payload))
        assert text_of(lambda url=fake.url: TeacherServer(url, None, 2, VOCABULARY)) == (
            f"The teacher at {fake.url} returns no prompt_logprobs for each token: {str(body)!r}. "
            "Expected a vLLM server: vllm serve big --max-logprobs 2"
        )


def test_rows_too_long_for_the_server(serve):
    message = "This model's maximum context length is 3 tokens."

    def answer(path, payload):
        if payload and len(payload["prompt"]) > 3:
            return 400, {"error": {"message": message}}
        return vllm(path, payload)

    fake = serve(answer)
    teacher = TeacherServer(fake.url, None, 2, VOCABULARY)
    assert text_of(lambda: teacher.top_logps([torch.zeros(4, dtype=torch.long)])) == (
        f"The teacher at {fake.url} answers 400: This model's maximum context length is 3 tokens. Start it with a "
        "larger --max-model-len, or lower max-length and max-new-tokens."
    )


def test_a_server_that_restarts(serve, waits):
    replies = iter([None, None, (503, b""), (503, b"")])
    fake = serve(lambda path, payload: next(replies, None) or vllm(path, payload))
    teacher = TeacherServer(fake.url, None, 2, VOCABULARY)
    assert teacher.top_logps([torch.tensor([1, 2])])[0][0].tolist() == [[1, 2, 2]]
    assert waits == [1.0, 2.0]

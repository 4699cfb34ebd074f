"""A quantised base: how small it is, that two processes give the numbers of one, and the merged model."""

import pytest
import torch
from posttrain import api
from posttrain.assembly.config import resolve
from posttrain.assembly.estimate import sizes_of, weight_bytes
from posttrain.catalogue.discovery import locate
from posttrain.cli.main import main
from posttrain.models.load import load_policy
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from .cases import COMMON, ROWS
from .test_strategies import TOLERANCE, difference, once

pytest.importorskip("bitsandbytes", reason="needs the extra posttrain[qlora]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose matrices outweigh its embedding, as those of real models do."""
    path = str(tmp_path_factory.mktemp("quantised") / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 13}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(**sizes, **special, num_attention_heads=2, num_key_value_heads=2, initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def base_bytes(policy) -> int:
    """What the base's weights take, scales and scales of scales included."""
    total = 0
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            continue
        total += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        for one in (state, getattr(state, "state2", None)):
            if one is not None:
                total += one.absmax.numel() * one.absmax.element_size()
    return total


def test_the_strategy_quantises_by_itself(folder):
    settings, _ = resolve(locate("sft").card, [], {}, {"model": folder, "strategy": "qlora"})
    assert (settings.model.quantize, settings.model.lora) == ("nf4", True)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("kind", "share"), [("nf4", 0.17), ("fp4", 0.17), ("int8", 0.30)])
def test_the_base_is_small(folder, kind, share, double):
    settings = Settings(model=folder, quantize=kind, lora=True, device="cpu", double_quantization=double)
    found = base_bytes(load_policy(folder, tiny_tokenizer(), settings.model).policy)
    whole = sizes_of(settings.model).parameters * 4
    assert found <= share * whole
    assert weight_bytes(sizes_of(settings.model), settings.model, torch.device("cpu")) == pytest.approx(found, rel=0.12)


def test_double_quantisation_saves_bytes(folder):
    sizes = [
        base_bytes(
            load_policy(
                folder,
                tiny_tokenizer(),
                Settings(model=folder, quantize="nf4", device="cpu", double_quantization=double).model,
            ).policy
        )
        for double in (True, False)
    ]
    assert sizes[0] < sizes[1]


def test_two_processes_give_the_losses_of_one(tmp_path_factory, folder):
    given = {"model": folder, "tokenizer": None, "lora": True, "lora_rank": 4, "quantize": "nf4"}
    one = once(tmp_path_factory, "quantised-one", {"sft": {"method": "sft", "strategy": "qlora", **given}}, 1)
    cases = {s: {"method": "sft", "strategy": s, **given} for s in ("ddp", "qlora")}
    two = once(tmp_path_factory, "quantised-two", cases, 2)
    for strategy in cases:
        print(f"qlora under {strategy}, two processes: {difference(two[strategy], one['sft']):.1e}")
        assert difference(two[strategy], one["sft"]) <= TOLERANCE
        assert difference(two[strategy], {"losses": [0.0] * 4}) > 0.1


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_exported_model_answers_as_the_adapter_did(folder, tmp_path, capsys, kind):
    """Merged into the dequantised weights; merged into the full ones it is another model, which is said."""
    run = api.train(
        "sft", model=folder, data=ROWS["sft"], strategy="qlora", quantize=kind, output=str(tmp_path / "run"), **COMMON
    )
    ids = torch.tensor([[4, 5, 6, 7]])
    run.policy.eval()
    with torch.no_grad():
        trained = run.model(input_ids=ids).logits
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "merged")]) == 0
    assert f"({kind})" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "full"), "--onto", "full"]) == 0
    with torch.no_grad():
        merged, full = (
            AutoModelForCausalLM.from_pretrained(tmp_path / name)(input_ids=ids).logits for name in ("merged", "full")
        )
    scale = float(trained.abs().max())
    assert float((merged - trained).abs().max()) <= (1e-4 if kind == "nf4" else 0.02) * scale
    assert float((full - trained).abs().max()) > float((merged - trained).abs().max())


def test_export_of_whole_weights_is_refused(folder, tmp_path, capsys):
    api.train("sft", model=folder, data=ROWS["sft"], output=str(tmp_path / "run"), **COMMON)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert "is no adapter: its weights are whole already" in capsys.readouterr().err


def test_int8_rows_are_read_alike_in_training_in_evaluation_and_whatever_comes_later(folder):
    """bitsandbytes' other kernel takes out the columns in which any token of a pass is large."""
    settings = Settings(model=folder, quantize="int8", lora=True, device="cpu")
    policy = load_policy(folder, tiny_tokenizer(), settings.model).policy
    with torch.no_grad():
        policy.inner.get_input_embeddings().weight.mul_(40.0)  # so that some columns are large
    one, other = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 6, 11, 12]])

    def states(ids, training):
        policy.train(training)
        return policy.decoder(input_ids=ids, use_cache=False).last_hidden_state.detach()

    assert torch.equal(states(one, True), states(one, False))
    torch.testing.assert_close(states(one, False)[:, :2], states(other, False)[:, :2], rtol=0, atol=1e-5)

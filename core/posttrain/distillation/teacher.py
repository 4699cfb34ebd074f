"""Teachers: another model, the policy itself (at the start, now, or its moving average), or a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from posttrain.contract.views import Sequence
from posttrain.distillation.teacher_inputs import matching
from posttrain.errors import ModelError, SettingsError
from posttrain.models.adapters import TEACHER_ADAPTER, adapter_base, attach
from posttrain.models.device import choose_device
from posttrain.models.ema import EmaModel
from posttrain.models.frozen import Frozen
from posttrain.models.load import load_module, load_tokenizer
from posttrain.models.probe import choose_layout
from posttrain.models.processor import reads_images
from posttrain.models.shown import placer_of
from posttrain.network.find_head import find_head
from posttrain.network.image_reader import ImageReader, reader_of
from posttrain.network.modes import evaluating
from posttrain.network.token_model import TokenModel

if TYPE_CHECKING:
    from posttrain.models.reference import Reference
    from posttrain.settings import ModelSettings, TeacherSettings

#: Teachers that are the policy itself.
SELF = ("base", "live", "average")
#: Logit of a token that a model does not have: its probability is 0, its log-prob still finite.
NEVER = -1e4


class ModelTeacher(Frozen):
    """A separate model. ``tokenizer`` is None where it is the policy's."""

    def __init__(self, module: Any, tokenizer: Any, packing: bool, vocabulary: int, reader: ImageReader | None = None):
        """Freeze ``module``; ``vocabulary`` is the number of the policy's logits, ``reader`` reads images."""
        self.vocabulary = vocabulary
        self.model = TokenModel(module, find_head(module))
        self.model.images = placer_of(module, reader if reads_images(module.config) else None)
        self.model.requires_grad_(False)
        self.model.eval()
        self.tokenizer = tokenizer
        self.matched: tuple[Tensor, Tensor] | None = None
        """Ids (k,) of equivalent tokens, the policy's and this model's, where it has its own tokeniser."""
        choose_layout(self.model, packing)

    @contextmanager
    def active(self) -> Iterator[TokenModel]:
        """Yield the teacher's model."""
        yield self.model

    def logits(self, sequences: list[Sequence], temperature: float) -> Callable[[slice], Tensor]:
        """Return logits as ``Frozen.logits``; with the same tokeniser cut or padded to the policy's vocabulary.

        Models of one family pad their vocabularies differently; no text contains the tokens beyond, only a sampler that
        is still random draws one now and then.
        """
        if self.tokenizer is not None:
            return super().logits(sequences, temperature)
        last = self.model.inner.get_input_embeddings().weight.shape[0] - 1
        give = super().logits([replace(s, ids=s.ids.clamp(max=last), experts=None) for s in sequences], temperature)

        def chunk(at: slice) -> Tensor:
            logits = give(at)  # (c, W)
            missing = self.vocabulary - logits.shape[1]
            return F.pad(logits, (0, missing), value=NEVER) if missing > 0 else logits[:, : self.vocabulary]

        return chunk


class BaseTeacher(Frozen):
    """The policy at the start of the run."""

    tokenizer = None

    def __init__(self, reference: Reference):
        self.reference = reference

    @contextmanager
    def active(self) -> Iterator[TokenModel]:
        """Yield the frozen start."""
        with self.reference.active() as model:
            yield model


class LiveTeacher(Frozen):
    """The current policy, without gradient."""

    tokenizer = None

    def __init__(self, policy: TokenModel):
        self.policy = policy

    @contextmanager
    def active(self) -> Iterator[TokenModel]:
        """Yield the policy in evaluation mode."""
        with evaluating(self.policy):
            yield self.policy


class AdapterTeacher(LiveTeacher):
    """The policy's own base with another adapter."""

    def __init__(self, policy: TokenModel, folder: str):
        super().__init__(policy)
        attach(policy.model, folder, TEACHER_ADAPTER)
        policy.model.set_adapter("default")

    @contextmanager
    def active(self) -> Iterator[TokenModel]:
        """Yield the base with the teacher's adapter."""
        adapters: Any = self.policy.model
        adapters.set_adapter(TEACHER_ADAPTER, inference_mode=True)
        try:
            with super().active() as model:
                yield model
        finally:
            adapters.set_adapter("default")


def check_teacher(
    method: str, settings: TeacherSettings, loading: ModelSettings, given: Any, tokenizer: Any, aligned: bool
) -> None:
    """Refuse a teacher that is missing, or whose tokens differ, before any weights load.

    ``aligned``: the method can learn from a teacher with other tokens. Raises SettingsError, ModelError.
    """
    name = settings.teacher_model
    if given is not None or name in SELF:
        return
    if name is None:
        raise SettingsError(
            f"Method '{method}' learns from a teacher and none was given. Name one: --teacher-model FOLDER, a Hub id, "
            f"the address of a vLLM server, or {', '.join(SELF)} for the model itself."
        )
    if not (_is_address(name) or aligned or _same_tokens(load_tokenizer(name, loading), tokenizer)):
        raise ModelError(
            f"Teacher '{name}' has another tokeniser than the model, and '{method}' compares them token by token. "
            "Choose a teacher of the model's own family, or a method that aligns their texts: gold"
        )


def load_teacher(
    policy: TokenModel, tokenizer: Any, settings: TeacherSettings, loading: ModelSettings, given: Any, reference: Any
) -> Any:
    """Load the teacher that ``settings.teacher_model`` names, or wrap the module ``given``. Raises ModelError.

    ``reference`` makes the frozen start on request. A teacher with another tokeniser has ``tokenizer``.
    """
    vocabulary = policy.inner.get_output_embeddings().weight.shape[0]
    if given is not None:
        return ModelTeacher(given, None, loading.packing, vocabulary, reader_of(tokenizer))
    name = settings.teacher_model
    assert name is not None  # check_teacher has refused None
    if name == "base":
        return BaseTeacher(reference())
    if name == "live":
        return LiveTeacher(policy)
    if name == "average":
        return EmaModel(policy, settings.teacher_average_rate)
    if _is_address(name):
        return _server(name, policy, settings, vocabulary)
    base = adapter_base(name)
    if base is not None and hasattr(policy.model, "peft_config") and _same(base, policy):
        return AdapterTeacher(policy, name)
    module = load_module(name, loading, choose_device(loading), "vocabulary", None)
    own = load_tokenizer(name, loading)
    if _same_tokens(own, tokenizer):
        return ModelTeacher(module, None, loading.packing, vocabulary, reader_of(tokenizer))
    teacher = ModelTeacher(module, own, loading.packing, vocabulary, reader_of(own))
    teacher.matched = matching(tokenizer, own, policy.device)
    return teacher


def _server(name: str, policy: TokenModel, settings: TeacherSettings, vocabulary: int) -> Any:
    from posttrain.distillation.teacher_server import ServerTeacher

    url, _, model = name.partition("#")
    return ServerTeacher(url, model or None, settings.teacher_top_k, vocabulary, policy.device)


def _is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _same(base: str, policy: TokenModel) -> bool:
    own = str(policy.inner.config._name_or_path)
    return base == own or Path(base).expanduser().resolve() == Path(own).expanduser().resolve()


def _same_tokens(one: Any, other: Any) -> bool:
    return one.get_vocab() == other.get_vocab()

"""Teachers: another model, the policy itself as it was, is, or was on average, or a server far away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from posttrain.contract.views import Sequence
from posttrain.distillation.teacher_inputs import matching
from posttrain.errors import ModelError, SettingsError
from posttrain.models.adapters import TEACHER_ADAPTER, adapter_base, attach
from posttrain.models.ema import EmaModel
from posttrain.models.frozen import Frozen
from posttrain.models.load import choose_device, load_module, load_tokenizer
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
#: Logit of a token that a model does not have: its probability is 0, its log-prob still a number.
NEVER = -1e4


class ModelTeacher(Frozen):
    """A model of its own. ``tokenizer`` is None where it is the policy's."""

    def __init__(self, module: Any, tokenizer: Any, packing: bool, vocabulary: int, reader: ImageReader | None = None):
        """Freeze ``module``; ``vocabulary`` is the number of logits that the policy has, ``reader`` reads images."""
        self.vocabulary = vocabulary
        self.model = TokenModel(module, find_head(module))
        self.model.images = placer_of(module, reader if reads_images(module.config) else None)
        self.model.requires_grad_(False)
        self.model.eval()
        self.tokenizer = tokenizer
        self.matched: tuple[Tensor, Tensor] | None = None
        """Ids (k,) of tokens that mean the same, the policy's and this model's, where it has its own tokeniser."""
        choose_layout(self.model, packing)

    @contextmanager
    def active(self) -> Iterator[TokenModel]:
        """The teacher's model."""
        yield self.model

    def logits(self, sequences: list[Sequence], temperature: float) -> Callable[[slice], Tensor]:
        """As ``Frozen.logits``; with the same tokeniser the vocabulary is cut, or filled up, to the policy's.

        Sizes of one family pad their vocabularies differently; no text ever has the tokens beyond, only a sampler that
        is still at random draws one now and then.
        """
        if self.tokenizer is not None:
            return super().logits(sequences, temperature)
        last = self.model.inner.get_input_embeddings().weight.shape[0] - 1
        give = super().logits(
            [Sequence(s.ids.clamp(max=last), s.trained, breaks=s.breaks) for s in sequences], temperature
        )

        def chunk(at: slice) -> Tensor:
            logits = give(at)  # (c, W)
            missing = self.vocabulary - logits.shape[1]
            return F.pad(logits, (0, missing), value=NEVER) if missing > 0 else logits[:, : self.vocabulary]

        return chunk


class BaseTeacher(Frozen):
    """The policy as it was when the run began."""

    tokenizer = None

    def __init__(self, reference: Reference):
        self.reference = reference

    @contextmanager
    def active(self) -> Iterator[TokenModel]:
        """The frozen start."""
        with self.reference.active() as model:
            yield model


class LiveTeacher(Frozen):
    """The policy as it is at this moment, without gradient."""

    tokenizer = None

    def __init__(self, policy: TokenModel):
        self.policy = policy

    @contextmanager
    def active(self) -> Iterator[TokenModel]:
        """The policy in evaluation mode."""
        with evaluating(self.policy):
            yield self.policy


class AdapterTeacher(LiveTeacher):
    """The policy's own base under another adapter."""

    def __init__(self, policy: TokenModel, folder: str):
        super().__init__(policy)
        attach(policy.model, folder, TEACHER_ADAPTER)
        policy.model.set_adapter("default")

    @contextmanager
    def active(self) -> Iterator[TokenModel]:
        """The base with the teacher's adapter."""
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
    """Refuse a teacher that is not there, or cuts text into other tokens, before any weights load.

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
    """The teacher that ``settings.teacher_model`` names, or the module ``given``. Raises ModelError.

    ``reference`` makes the frozen start when it is asked for. A teacher with another tokeniser has ``tokenizer``.
    """
    vocabulary = policy.inner.get_output_embeddings().weight.shape[0]
    if given is not None:
        return ModelTeacher(given, None, loading.packing, vocabulary, reader_of(tokenizer))
    name = settings.teacher_model
    assert name is not None  # check_teacher has refused it
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

"""Reference models: the model that a loss compares the policy with, and the source of its predictions.

    need of a method                  references that provide it
    reference_logprob                 annotation | score | initial | adapter_off | teacher
    reference_distribution            initial | adapter_off | teacher

`annotation` and `score` read one number per token from the store and cost nothing during training; the others run a second
forward pass without gradient over the same positions. Configured by conf/reference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cft.console import console
from cft.errors import BadValue
from cft.models.head import backbone, project
from cft.models.load import base_weights_hash
from cft.ranges import in_range
from cft.scores.column import OWN_LOGPROB, REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB, Column, StoredColumn

Dtype = Literal["auto", "float32", "bfloat16"]


class LiveReference:
    """A reference model whose predictions are computed during training, always in eval mode and without gradient.

    Args:
        model: The model.
        switch: Context in which `model` is the reference (adapters disabled); None: it is a separate model.
    """

    def __init__(self, model: PreTrainedModel, *, switch: Callable[[], AbstractContextManager[None]] | None) -> None:
        self.model, self.switch = model, switch or nullcontext
        self.is_own = switch is None

    @torch.no_grad()
    def hidden(self, **inputs: Any) -> Tensor:
        with self.switch(), _eval_mode(self.model):
            return backbone(self.model)(**inputs, use_cache=False).last_hidden_state

    @torch.no_grad()
    def project(self, hidden_ND: Tensor) -> Tensor:
        with self.switch(), _eval_mode(self.model):
            return project(self.model, hidden_ND)

    def to(self, device: torch.device) -> None:
        if self.model.get_input_embeddings().weight.device != device:  # type: ignore[union-attr]
            self.model.to(device)  # type: ignore[arg-type]


class Reference(Protocol):
    """An option of `reference`.

    gives: REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB, both or neither.
    stored: the column that holds the log-probs, "" if they are computed.
    attach: makes the live model from an untrained policy; None if there is none. mixed: the policy computes in bfloat16.
    """

    gives: frozenset[str]
    stored: str

    def attach(self, policy: PreTrainedModel, *, mixed: bool = False) -> LiveReference | None: ...


class NoReference:
    gives: frozenset[str] = frozenset()
    stored = ""

    def attach(self, policy: PreTrainedModel, *, mixed: bool = False) -> None:
        return None


class Annotation:
    """Log-probs of the annotating model, stored by cft annotate; usually training starts from this model."""

    gives = frozenset({REFERENCE_LOGPROB})
    stored = OWN_LOGPROB

    def attach(self, policy: PreTrainedModel, *, mixed: bool = False) -> None:
        return None


def starts_as_reference(
    policy: PreTrainedModel, *, columns: Mapping[str, Column], manifest: Mapping[str, Any]
) -> bool | None:
    """Whether an untrained policy is the model whose log-probs the annotation holds; prints a note if not.

    Args:
        policy: The policy before training. Untrained adapters do not matter.
        columns: The objective's columns.
        manifest: Of the annotation.

    Returns:
        None if the objective does not read these log-probs, or the policy's weights are not loaded yet.
    """
    column = columns.get(REFERENCE_LOGPROB)
    if not (isinstance(column, StoredColumn) and column.name == OWN_LOGPROB) or policy.device.type == "meta":
        return None
    annotated = manifest["fingerprint"]["model"]
    if not annotated["weights"]:  # made by servers
        return None
    same = base_weights_hash(policy, dtype=annotated["dtype"]) == annotated["weights"]
    if not same:
        console.print(
            f"Note: reference=annotation holds the log-probs of the model that annotated {manifest['name']} "
            f"({manifest['model_name']}), and this training starts from other weights. A method that compares with the model "
            "before training (PSFT, iw-SFT, ssToken) needs reference=initial"
        )
    return same


class Score:
    """Log-probs of another frozen model over the same tokens.

    Args:
        name: Name of the stored score, made by `cft score`.
    """

    gives = frozenset({REFERENCE_LOGPROB})

    def __init__(self, *, name: str) -> None:
        self.stored = name

    def attach(self, policy: PreTrainedModel, *, mixed: bool = False) -> None:
        return None


def _frozen(model: PreTrainedModel, *, dtype: Dtype, mixed: bool) -> LiveReference:
    kept = torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and mixed) else torch.float32
    if dtype != "auto" or mixed:
        for weight in model.parameters():  # not buffers: rotary frequencies stay float32 in a bfloat16 model
            weight.data = weight.data.to(kept)
    return LiveReference(model.eval().requires_grad_(False), switch=None)


class Initial:
    """A frozen copy of the model before training. With trainer=fsdp its blocks are sharded over the ranks.

    Args:
        dtype: Data type of its weights. "auto" = bfloat16 if training is bf16-mixed, else the model's; "float32" takes twice
            the memory of bfloat16.
    """

    gives = frozenset({REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB})
    stored = ""

    @in_range
    def __init__(self, *, dtype: Dtype = "auto") -> None:
        self.dtype: Dtype = dtype

    def attach(self, policy: PreTrainedModel, *, mixed: bool = False) -> LiveReference:
        return _frozen(copy.deepcopy(policy), dtype=self.dtype, mixed=mixed)


class AdapterOff:
    """The policy without its low-rank adapters: the same weights, no copy.

    Raises:
        BadValue: When it is attached: the model has no adapters, or weights outside them are trained.
    """

    gives = frozenset({REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB})
    stored = ""

    def attach(self, policy: PreTrainedModel, *, mixed: bool = False) -> LiveReference:
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in policy.modules() if isinstance(module, BaseTunerLayer)]
        if not layers:
            raise BadValue(
                "reference=adapter_off: the model has no adapters; expected model/lora=default, or use reference=initial "
                "(a frozen copy)"
            )
        names = [name for name, weight in policy.named_parameters() if weight.requires_grad]
        if others := [name for name in names if "lora_" not in name]:
            raise BadValue(
                f"reference=adapter_off: {len(others)} weights outside the adapters are trained as well, first {others[0]}, so "
                "that the model without adapters would change; expected model.lora.bias=none, or use reference=initial (a "
                "frozen copy)"
            )

        @contextmanager
        def switched_off() -> Iterator[None]:
            for layer in layers:
                layer.enable_adapters(False)
            try:
                yield
            finally:
                for layer in layers:
                    layer.enable_adapters(True)

        return LiveReference(policy, switch=switched_off)


class Teacher:
    """Another model with the same vocabulary, loaded in addition to the trained one.

    Args:
        model: As in conf/model.
        dtype: Data type of its weights, as for `Initial`.

    Raises:
        BadValue: When it is attached: its vocabulary has another size.
    """

    gives = frozenset({REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB})
    stored = ""

    @in_range
    def __init__(self, *, model: Any, dtype: Dtype = "auto") -> None:
        self.spec = model
        self.dtype: Dtype = dtype

    def attach(self, policy: PreTrainedModel, *, mixed: bool = False) -> LiveReference:
        from cft.models.load import load_causal_lm

        teacher = load_causal_lm(self.spec, empty=policy.device.type == "meta")
        if teacher.config.vocab_size != policy.config.vocab_size:
            raise BadValue(
                f"reference.model={self.spec.name}: its vocabulary has {teacher.config.vocab_size} tokens, the trained "
                f"model's {policy.config.vocab_size}; distributions can be compared only over the same vocabulary"
            )
        return _frozen(teacher, dtype=self.dtype, mixed=mixed)


@contextmanager
def _eval_mode(module: torch.nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)

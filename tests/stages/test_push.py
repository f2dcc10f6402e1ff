"""What is published, to a hub on this machine: the files of the thing and its card, no paths, no secrets, no leftovers."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard, ModelCard

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.config.build import ConfigError
from cft.config.schema import PushConfig
from cft.run_log import recording
from cft.runs.job import Job
from cft.runs.publish import PublishError, parcel, without_machine
from cft.stages.push import PushError, push
from tests.hub import Hub, hub
from tests.results import arm, write_run

TOKEN = "hf_planted0123456789"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub() as found:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def pushed(path: Path | str, tmp_path: Path, **changes: Any) -> str:
    values = {"repo_id": "me/it", "part": "auto", "private": True, "revision": "main", "message": "", **changes}
    cfg = PushConfig(path=str(path), annotations_dir=str(tmp_path / "annotations"), seed=0, **values)
    job = Job(stage="push", folder=tmp_path / "push", group="push", multirun=False, config={}, digest="0" * 12)
    return push(cfg, job)


@pytest.fixture
def annotation(tmp_path: Path) -> Path:
    """The shipped one, made at another place and with things beside it that are nobody's business."""
    folder = tmp_path / "annotations" / "mine"
    shutil.copytree(SHIPPED / "tiny_arith", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"]["model"]["path"] = "/home/someone/models/tiny"
    manifest["lineage"]["command"] = f"cft annotate data.dir=/scratch/team/gsm8k api={TOKEN}"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in ("run.log", ".lock", "notes.txt", "rows/.00000.parquet.77.tmp"):
        (folder / name).write_text(f"written in /home/someone by {TOKEN}")
    return folder


def test_an_annotation_opens_from_what_was_sent(here: Hub, annotation: Path, tmp_path: Path) -> None:
    with recording():
        address = pushed("mine", tmp_path)
    assert address == f"{here.endpoint}/datasets/me/it/commit/{'0' * 40}"
    (created,) = here.created
    assert (created["name"], created["organization"], created["type"], created["private"]) == (
        "it",
        "me",
        "dataset",
        True,
    )
    assert here.authorization == {f"Bearer {TOKEN}"}
    described = {"manifest.json", "README.md", "agreement.json"}
    assert {name.split("/")[0] for name in here.files} == described | {"rows", "problems", "units"}
    for name, content in here.files.items():
        assert TOKEN.encode() not in content, name
        assert b"/home/someone" not in content, name
        assert b"/scratch" not in content, name
        (tmp_path / "got" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / name).write_bytes(content)
    got = AnnotationStore(tmp_path / "got")
    assert got.manifest()["config"]["model"]["path"] == "<path>/tiny"
    assert got.manifest()["fingerprint_sha256"] == AnnotationStore(annotation).manifest()["fingerprint_sha256"]
    assert len(got.rows()) == len(AnnotationStore(annotation).rows())
    assert DatasetCard((tmp_path / "got" / "README.md").read_text()).data.size_categories == ["1K<n<10K"]
    assert "Local paths and secrets were removed from: manifest.json" in (tmp_path / "push" / "run.log").read_text()


def test_what_an_earlier_commit_left_in_a_folder_of_data_goes(here: Hub, annotation: Path, tmp_path: Path) -> None:
    """Rows of a unit that was made again would be read twice by rows/*.parquet."""
    here.files |= {"rows/00000.old.parquet": b"", "LICENSE": b"mine"}
    pushed(annotation, tmp_path)
    assert "rows/00000.old.parquet" not in here.files
    assert here.files["LICENSE"] == b"mine"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished training with adapters."""
    data = {"annotation": "a", "fingerprint": "f" * 64, "rows_sha256": "a" * 64, "train_rows": 1, "validation_rows": 0}
    data |= {"eligible_tokens": 1, "response_tokens": 2}
    settings = {"model.path": "/mnt/models/llama", "model.revision": "main", "loss.normalizer": "critical"}
    more = {"settings": {**settings, "optimizer.lr": 1e-5}, "best_validation": {"metric": "val/loss"}, "identity": "0"}
    graded = {"evaluation": {"num_samples": 0, "temperature": 1.0, "verifier": "numeric"}}
    write_run(tmp_path, "run", arm("critical"), seed=0, correct=[1, 0], data=data, **more, **graded)
    folder = tmp_path / "run"
    for name in ("export", "export.adapter"):
        (folder / name).mkdir()
        weights = "adapter_model.safetensors" if name == "export.adapter" else "model.safetensors"
        config = "adapter_config.json" if name == "export.adapter" else "config.json"
        (folder / name / weights).write_bytes(b"weights")
        (folder / name / config).write_text('{"base_model_name_or_path": "/mnt/models/llama"}')
        sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted((folder / name).iterdir())]
        (folder / name / "SHA256SUMS").write_text("".join(sums))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"optimizer")
    return folder


@pytest.mark.parametrize("part, weights", [("auto", "model.safetensors"), ("adapter", "adapter_model.safetensors")])
def test_a_run_gives_its_model_or_its_adapters_alone(
    part: str, weights: str, here: Hub, run: Path, tmp_path: Path
) -> None:
    """The hashes beside them are those of the files that were sent."""
    (run / "export" / "README.md").write_text("# card\n")
    pushed(run, tmp_path, part=part, private=False)
    assert (here.created[0].get("type", "model"), here.created[0]["private"]) == ("model", False)
    assert here.files[weights] == b"weights"
    config = next(name for name in here.files if name.endswith("config.json"))
    assert set(here.files) == {weights, config, "README.md", "SHA256SUMS"}
    assert json.loads(here.files[config]) == {"base_model_name_or_path": "<path>/llama"}
    for line in here.files["SHA256SUMS"].decode().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256(here.files[name]).hexdigest() == digest
    if part == "adapter":
        assert ModelCard(here.files["README.md"].decode()).data.library_name == "peft"


def test_of_a_pipeline_its_one_model_is_sent_and_of_several_none_is_chosen(run: Path, tmp_path: Path) -> None:
    """A reinforcement-learning run among them; estimates and searches are no results."""
    folder = tmp_path / "pipeline"
    for name in ("base", "search-sft-lr1e-05-seed100", "rl"):
        (folder / "steps").mkdir(parents=True, exist_ok=True)
        (folder / "steps" / f"{name}.json").write_text("{}")
        if name != "base":
            shutil.copytree(run, folder / name)
    results = json.loads((folder / "rl" / "results.json").read_text())
    (folder / "rl" / "results.json").write_text(json.dumps({**results, "stage": "rl"}))
    made = parcel(folder)
    assert (made.kind, made.files["model.safetensors"]) == ("model", folder / "rl" / "export" / "model.safetensors")
    shutil.copytree(folder / "rl", folder / "sft")
    (folder / "steps" / "sft.json").write_text("{}")
    with pytest.raises(
        PublishError, match=r"2 steps of this pipeline hold a model; say which: path=.*/rl.*, path=.*/sft"
    ):
        parcel(folder)
    for name in ("rl", "sft"):
        shutil.rmtree(folder / name / "export")
    with pytest.raises(PublishError, match="no step of this pipeline holds a model"):
        parcel(folder)


@pytest.mark.parametrize("status, said", [(401, "hf auth login"), (500, "try again")])
def test_a_refusal_of_the_hub_is_said_with_its_remedy(
    status: int, said: str, here: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    here.refuses = status
    with pytest.raises(PushError, match=rf"repo_id=me/it: the hub did not accept the upload .*{said}") as refused:
        pushed(run, tmp_path)
    assert TOKEN not in str(refused.value)


def test_offline_is_said_so(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PushError, match="unset HF_HUB_OFFLINE"):
        pushed(run, tmp_path)


def test_what_is_nothing_unfinished_or_wrongly_named_is_refused_before_the_hub_is_asked(
    annotation: Path, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PublishError, match="nothing to publish"):
        pushed(tmp_path / "empty", tmp_path)
    with pytest.raises(ConfigError, match="repo_id=a b: expected a name such as"):
        pushed(annotation, tmp_path, repo_id="a b")
    with pytest.raises(PublishError, match=r"part=adapter: .* is no run"):
        pushed(annotation, tmp_path, part="adapter")
    shutil.rmtree(run / "export.adapter")
    with pytest.raises(PublishError, match=r"no export\.adapter, which only a training with model\.lora writes"):
        pushed(run, tmp_path, part="adapter")
    manifest = json.loads((annotation / "manifest.json").read_text())
    (annotation / "manifest.json").write_text(json.dumps({**manifest, "finished": False}))
    with pytest.raises(PublishError, match="not finished"):
        pushed(annotation, tmp_path)


def test_data_that_holds_a_secret_is_refused_and_links_stay_behind(
    annotation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (annotation / "rows" / "link.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "elsewhere.parquet")
    assert "rows/link.parquet" not in parcel(annotation).files
    monkeypatch.setenv("SOME_API_KEY", "planted-in-data-1")
    hidden = [[{"content": "so planted-in-data-1 is"}]]
    pq.write_table(pa.table({"messages": hidden}), annotation / "rows" / "99999.x.parquet")
    with pytest.raises(PublishError, match=r"99999\.x\.parquet: holds a secret"):
        parcel(annotation)


@pytest.mark.parametrize(
    "text, left",
    [
        ("data.dir=/scratch/team/gsm8k seed=1", "data.dir=<path>/gsm8k seed=1"),
        ("'/home/a/b c'", "'<path>/b c'"),
        ("file:///home/a/x.yaml", "file://<path>/x.yaml"),
        ('{"path": "/mnt/models/llama"}', '{"path": "<path>/llama"}'),
        ("https://huggingface.co/me/it and https://arxiv.org/abs/2510.10974", None),
        ("Qwen/Qwen2.5-0.5B, outputs/export/trl, 3/4/5, <this folder>/data/x", None),
    ],
)
def test_paths_of_a_machine_keep_their_last_part(text: str, left: str | None) -> None:
    assert without_machine(text) == (text if left is None else left)

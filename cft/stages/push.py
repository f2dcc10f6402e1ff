"""The push stage: uploads an annotation, export, model or adapters to the Hugging Face hub (`cft/runs/publish.py`)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from cft import run_log
from cft.annotation.store import find_annotation
from cft.config.build import ConfigError
from cft.config.schema import PushConfig
from cft.console import console, size
from cft.errors import UserError
from cft.runs.job import Job
from cft.runs.publish import Parcel, parcel


class PushError(UserError, RuntimeError):
    """The hub did not accept the upload; the message has the remedy."""


def push(cfg: PushConfig, job: Job) -> str:
    """Upload a folder; returns the URL of the commit."""
    try:
        validate_repo_id(cfg.repo_id)
    except HFValidationError as error:
        raise ConfigError(f"repo_id={cfg.repo_id}: expected a name such as me/my-annotation: {error}") from error
    named = Path(cfg.path)
    folder = named if named.is_dir() else find_annotation(cfg.path, annotations_dir=cfg.annotations_dir, key="path")
    made = parcel(folder, part=cfg.part)
    run_log.write_to(job.folder)
    if made.rewritten:
        console.print(f"Local paths and secrets were removed from: {', '.join(made.rewritten)}", markup=False)
    count = sum(
        len(content) if isinstance(content, bytes) else content.stat().st_size for content in made.files.values()
    )
    console.print(f"Sending {made.kind}: {len(made.files)} files, {size(count)}", markup=False)
    try:
        address = _upload(made, cfg)
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, httpx.HTTPError) as error:
        raise PushError(_error_message(error, cfg)) from error
    console.print(f"{'Private' if cfg.private else 'Public'} {made.repo_type} {cfg.repo_id}: {address}", markup=False)
    return address


def _upload(made: Parcel, cfg: PushConfig) -> str:
    """Upload all files in one commit, and delete files of earlier uploads that would be read together with them."""
    disable_progress_bars()
    api, name, kind = HfApi(), cfg.repo_id, made.repo_type
    api.create_repo(name, repo_type=kind, private=cfg.private, exist_ok=True)
    if cfg.revision != "main":
        api.create_branch(name, repo_type=kind, branch=cfg.revision, exist_ok=True)
    folders = {PurePosixPath(name).parent for name in made.files} - {PurePosixPath(".")}
    stale = [
        file
        for file in api.list_repo_files(name, repo_type=kind, revision=cfg.revision)
        if file not in made.files and (PurePosixPath(file).parent in folders or file.endswith(".safetensors"))
    ]
    operations = [
        *(CommitOperationAdd(path_in_repo=file, path_or_fileobj=content) for file, content in made.files.items()),
        *(CommitOperationDelete(path_in_repo=file) for file in stale),
    ]
    sent = api.create_commit(
        name,
        operations,
        commit_message=cfg.message or f"{made.kind} of cft",
        repo_type=kind,
        revision=cfg.revision,
    )
    return str(sent.commit_url)


def _error_message(error: Exception, cfg: PushConfig) -> str:
    """Error message with the remedy."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, OfflineModeIsEnabled):
        remedy = "unset HF_HUB_OFFLINE"
    elif isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
        remedy = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
    else:
        remedy = "try again; files that were already uploaded are not sent again"
    return f"repo_id={cfg.repo_id}: the hub did not accept the upload ({said}); {remedy}"

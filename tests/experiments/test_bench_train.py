"""The training benchmark's own arithmetic: what it feeds the arms and what it makes of their results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from cft.models.flops import Arithmetic
from experiments.bench_train import ROWS_PER_STEP, Bench, report, step_flops
from experiments.bench_train_arm import ArmResult, ArmSpec
from experiments.bench_train_rows import DENSITY, BenchRow, load_rows, make_rows, save_rows


def bench_row(length: int, weighted: list[int]) -> BenchRow:
    sparse = np.zeros(length, bool)
    sparse[weighted] = True
    return BenchRow(np.arange(10, 10 + length), 2, sparse)


def test_rows_are_seeded_sorted_within_steps_and_survive_storage(
    tmp_path: Path, data_dir: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    made = [
        make_rows(tiny_tokenizer, folder=data_dir / "gsm8k", steps=3, rows_per_step=8, seed=seed) for seed in (0, 0, 1)
    ]
    assert [row.ids.tolist() for row in made[0]] == [row.ids.tolist() for row in made[1]]
    assert [row.ids.tolist() for row in made[0]] != [row.ids.tolist() for row in made[2]]
    for start in (0, 8, 16):
        lengths = [len(row.ids) for row in made[0][start : start + 8]]
        assert lengths == sorted(lengths, reverse=True)
    response = sum(len(row.ids) - row.prompt_len for row in made[0])
    assert sum(int(row.sparse.sum()) for row in made[0]) / response == pytest.approx(DENSITY, abs=0.04)
    assert all(row.sparse.any() and not row.sparse[: row.prompt_len].any() for row in made[0])
    save_rows(tmp_path / "rows.npz", made[0])
    for before, after in zip(made[0], load_rows(tmp_path / "rows.npz"), strict=True):
        assert (before.ids == after.ids).all()
        assert (before.sparse == after.sparse).all()
        assert before.prompt_len == after.prompt_len


@pytest.mark.parametrize("mask", ["sparse", "full"])
def test_both_trainers_are_told_the_same(mask: str) -> None:
    row = bench_row(7, [3, 5])
    ours, labels = row.token_row(mask, name="r"), np.array(row.labels(mask))
    assert ((ours.weight > 0) == (labels != -100)).all()
    assert (labels[labels != -100] == row.ids[ours.weight > 0]).all()
    assert int(ours.weight.sum()) == (2 if mask == "sparse" else 5)


def test_arithmetic_ends_at_the_last_token_with_loss() -> None:
    rows = [bench_row(9, [4, 6])] * ROWS_PER_STEP
    arithmetic = Arithmetic(block_token=100, head_token=10, attention_token=1)
    assert step_flops(arithmetic, rows, mask="sparse") == [ROWS_PER_STEP * (100 * 6 + 6 * 6 + 10 * 2)]
    assert step_flops(arithmetic, rows, mask="full") == [ROWS_PER_STEP * (100 * 8 + 8 * 8 + 10 * 7)]


def test_the_line_of_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def arm(seconds: float, peak: float, losses: list[float]) -> ArmResult:
        return ArmResult([9.0, 9.0, 9.0, *[seconds] * 5], losses, peak, state_mb=1000.0, imports_mb=0.0)

    arms = {
        "ours": arm(2.0, 1500.0, [1.0, 2.0]),
        "trl": arm(6.0, 2000.0, [1.0, 2.002]),
        "ours_full": arm(4.0, 1800.0, [1.0]),
        "trl_full": arm(6.0, 2400.0, [1.0]),
        "trl_default_environment": arm(9.0, 2000.0, [1.0]),
    }
    facts = {"matmul_gflops": 10.0, "packed_matmul_gflops": 20.0, "onednn_matmul_gflops": 16.0, "trl_dft_speedup": 1.2}
    work = {"sparse": [24e9] * 8, "full": [40e9] * 8}
    report(arms, tmp_path, facts, work=work, tokens=[100] * 8, began=0.0)
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert line == json.loads((tmp_path / "result.json").read_text())
    assert line["speedup_vs_trl"] == 2.5  # 6 / 2, less the fifth that TRL's other loss was faster
    assert line["speedup_vs_trl_full_mask"] == 1.5
    assert line["speedup_vs_trl_default_environment"] == 4.5
    assert line["memory_vs_trl"] == 0.5
    assert line["matmul_share"] == 1.2
    assert line["matmul_share_of_packed"] == 0.6
    assert line["loss_difference"] == pytest.approx(0.002 / 2.002, abs=1e-4)
    assert line["arms"]["ours"]["samples_per_s"] == ROWS_PER_STEP / 2


@pytest.mark.slow
def test_an_arm_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    spec = ArmSpec("ours", "sparse", 4, 16, 8, overrides=("no.such.key=1",))
    (tmp_path / "rows.npz").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"broken failed with exit status 1; see .*broken.log"):
        Bench(tmp_path).run("broken", spec)

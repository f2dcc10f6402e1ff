"""What the numerical tests compare with notices what it must."""

from __future__ import annotations

import pytest
import torch

from tests.precision import assert_as_exact_as_torch, assert_same, error, float64

pytestmark = pytest.mark.numerics


def test_inside_float64_nothing_is_narrowed_and_after_it_everything_is_as_before() -> None:
    x = torch.linspace(0, 1, 5, dtype=torch.float64)
    functions = torch.Tensor.to, torch.Tensor.float, torch.nn.functional.softmax
    with float64():
        found = x.to(torch.float32), x.to(dtype=torch.float32), x.float(), torch.arange(3).float()
        found += (torch.nn.functional.softmax(x, dim=-1, dtype=torch.float32),)
        assert {y.dtype for y in found} == {torch.float64}
        assert x.to(torch.bfloat16).dtype == torch.bfloat16
        assert torch.zeros(2).to(torch.float32).dtype == torch.float32
    assert functions == (torch.Tensor.to, torch.Tensor.float, torch.nn.functional.softmax)
    assert x.to(torch.float32).dtype == torch.float32


def test_a_mistake_in_float64_is_noticed() -> None:
    x = torch.linspace(1, 2, 5, dtype=torch.float64)
    assert_same(x, x * (1 + 1e-14))
    with pytest.raises(AssertionError):
        assert_same(x, x * (1 + 1e-8))  # rounding of float32 on the way
    with pytest.raises(AssertionError):
        assert_same(x, x.float())


def test_a_kernel_less_exact_than_torchs_is_noticed() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(30, 30, generator=generator) for _ in range(2))
    exact, torchs = (a.double() @ b.double(),), (a @ b,)
    other_order = (torch.stack([(a[:, k, None] * b[k]) for k in range(30)]).sum(0),)
    assert_as_exact_as_torch(other_order, torchs, exact)
    coarse = ((a.bfloat16() @ b.bfloat16()).float(),)
    assert error(coarse[0], exact[0]) < 0.01  # of the size that float32 tests with wide bounds let pass
    with pytest.raises(AssertionError):
        assert_as_exact_as_torch(coarse, torchs, exact)
    with pytest.raises(AssertionError):
        assert_as_exact_as_torch((torchs[0] * float("nan"),), torchs, exact)

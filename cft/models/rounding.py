"""Tolerance for deciding whether two computations differ only by rounding.

Rounding errors grow with depth and width and differ between processors, but affect only the last digits; a different formula
changes the first digits. The tolerance is half of the digits, as a fraction of the largest entry: the square root of the
machine epsilon, 3.5e-4 in float32, 0.03 in float16, 0.09 in bfloat16.
"""

from __future__ import annotations

import math

import torch

# Relative precision of float32 products, by torch's setting of float32_matmul_precision.
_PRODUCTS = {"highest": 2.0**-23, "high": 2.0**-10, "medium": 2.0**-7}


def half_of_the_digits(dtype: torch.dtype) -> float:
    """Relative tolerance for a model in `dtype`; with float64 weights it is that of float32, which norms and softmax use."""
    products = _PRODUCTS[torch.get_float32_matmul_precision()] if dtype == torch.float32 else 0.0
    return math.sqrt(max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps, products))

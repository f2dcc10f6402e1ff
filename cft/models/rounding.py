"""How far two computations of the same numbers may lie apart before one of them computes something else.

Rounding grows with depth and width and differs between processors, but stays within the last digits; another formula shows
in the first ones. What separates them is half of the digits: the square root of the spacing of numbers, 3.5e-4 in float32,
0.03 in float16, 0.09 in bfloat16. It is a fraction of the largest entry.
"""

from __future__ import annotations

import math

import torch

# Of a product of float32 numbers, where torch was told to multiply fewer digits of them.
_PRODUCTS = {"highest": 2.0**-23, "high": 2.0**-10, "medium": 2.0**-7}


def half_of_the_digits(dtype: torch.dtype) -> float:
    """For a model that computes in `dtype`; its norms and softmax are of float32 even where its weights are of float64."""
    products = _PRODUCTS[torch.get_float32_matmul_precision()] if dtype == torch.float32 else 0.0
    return math.sqrt(max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps, products))

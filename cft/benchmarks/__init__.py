"""Test sets: where their rows come from, how they are laid out, and several of them in one run."""

from cft.benchmarks.sets import BenchmarkVerifier, Suite, benchmark, suite

__all__ = [
    "BenchmarkVerifier",
    "Suite",
    "benchmark",
    "suite",
]

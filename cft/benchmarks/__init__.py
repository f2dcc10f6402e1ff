"""Benchmarks: sources and layouts of their rows, and suites of several."""

from cft.benchmarks.sets import BenchmarkVerifier, Suite, benchmark, suite

__all__ = [
    "BenchmarkVerifier",
    "Suite",
    "benchmark",
    "suite",
]

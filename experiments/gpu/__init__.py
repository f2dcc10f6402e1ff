"""The sections of experiments/bench_gpu.py: what they measure, each in a process of its own."""

"""Kernels and memory management for training and decoding on a CPU."""

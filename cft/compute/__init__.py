"""How a model computes: kernels, memory, devices."""

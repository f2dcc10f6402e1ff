"""Distributed training: process launcher, sharding, and distribution of the weights."""

"""Pipelines: several stages with one command, as named steps that are checked together and run in order."""

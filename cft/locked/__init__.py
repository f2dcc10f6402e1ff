"""Runs a program that nobody has read, and a test of it, in two processes that can do nothing but compute.

    lock        what a process gives up for good: files, network, processes, signals; memory and time beyond its limits
    nursery     a process without secrets, from whose copies the two begin
    program     the one that runs the program, and answers calls
    tester      the one that runs the test; calls go to the program, and plain data comes back
    values      plain data as bytes

The test is not in the program's process, nor is anything that says how it went: what a program finds in frames and memory,
prints, patches or ends is its own. `cft/verifiers/code.py` is the verifier, and
`conf/verifier/code.yaml` has the limits of time and memory.
"""

from cft.locked.session import CannotLock, Report, Trial, require_lock, tried

__all__ = ["CannotLock", "Report", "Trial", "require_lock", "tried"]

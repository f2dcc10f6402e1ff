"""Runs an untrusted program and its test in two processes that can do nothing but compute.

    lock        drops privileges for good: files, network, processes, signals; memory and time beyond the limits
    nursery     a process without secrets that the two are forked from
    program     the process that runs the program and answers calls
    tester      the process that runs the test; calls go to the program, and plain data comes back
    values      plain data as bytes

The test and its result are not in the program's process: whatever a program finds in frames and memory, prints, patches or
terminates is only its own. `cft/verifiers/code.py` is the verifier, and
`conf/verifier/code.yaml` has the limits of time and memory.
"""

from cft.locked.session import CannotLock, Report, Trial, require_lock, tried

__all__ = ["CannotLock", "Report", "Trial", "require_lock", "tried"]

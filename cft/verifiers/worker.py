"""The process that runs a verifier on untrusted text: `python -m cft.verifiers.worker`, started by `pool.py`.

Standard input: one line with the pickled verifier, then one JSON line a chunk, [[response, answer], ...].
Standard output: a "ready" line, then one JSON line an item as each is done, the fields of its verdict in their order:
[decision, extracted, explicit, reason, failed]; or {"error": its traceback} where the verifier raised.
An item that takes more processor time than the deadline ends the process (SIGPROF): a verdict does not depend on what else
the machine does. Nothing that comes back is unpickled: a compromised worker can say only verdicts. It imports neither torch
nor transformers, and never the user's `__main__`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import resource
import signal
import sys
import traceback
from typing import Any

from cft.types import Decision, Verdict, Verifier

MEMORY_BYTES = 1 << 30
TRACEBACK_CHARS = 4000


def main() -> None:
    # What a library prints must not mix with the protocol: file descriptor 1 goes where 2 goes.
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    setup = json.loads(requests.readline())
    verifier: Verifier = pickle.loads(base64.b64decode(setup["verifier"]))
    # Lazy imports happen here, on the start-up's time instead of the first item's.
    with contextlib.suppress(Exception):  # of answers of its own kind a verifier may ask more
        verdict_of(verifier, "\\boxed{x + 1}", "1 + x")
    if sys.platform == "linux":  # elsewhere address space says little about memory, and the call may fail
        limit(resource.RLIMIT_AS, MEMORY_BYTES)
    limit(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _reply(replies, "ready")
    for line in requests:
        for response, answer in json.loads(line):
            # Its default action ends the process, also inside of a library that does not return to Python.
            signal.setitimer(signal.ITIMER_PROF, setup["timeout_s"])
            try:
                verdict = verdict_of(verifier, response, answer)
                signal.setitimer(signal.ITIMER_PROF, 0)
                fields = (verdict.decision.value, verdict.extracted, verdict.explicit, verdict.reason, verdict.failed)
            except Exception:  # noqa: BLE001 - reported to the parent, which ends the run
                _reply(replies, {"error": traceback.format_exc()[-TRACEBACK_CHARS:]})
            else:
                _reply(replies, fields)


def verdict_of(verifier: Verifier, response: str, answer: str) -> Verdict:
    """The verifier's verdict; "undecided" where the text is too much for memory or stack. Other errors are defects of the
    verifier, and pass."""
    try:
        return verifier(response, answer)
    except (MemoryError, RecursionError) as error:
        reason = f"the verifier failed: {type(error).__name__}: {str(error)[:200]}"
        return Verdict(decision=Decision.UNDECIDED, extracted="", explicit=False, reason=reason, failed=True)


def limit(what: int, amount: int) -> None:
    """Set a soft limit, never above the hard one that this process was given."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))


def _reply(stream: Any, value: Any) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()

"""Programs that would do harm, hang, or pass although they are wrong; none of them passes `TEST` legitimately.

Each defines or fakes `f`, which should add one. They run with modules loaded (`MODULES`) that give access to the system, so
that the kernel refuses, not the import.
"""

from __future__ import annotations

NAMES = ("f",)
TEST = "assert f(2) == 3\nassert f(40) == 41\nassert f(-1) == 0\n"
RIGHT = "def f(x):\n    return x + 1\n"
MODULES = (
    "asyncio",
    "ctypes",
    "mmap",
    "multiprocessing",
    "resource",
    "select",
    "socket",
    "subprocess",
    "urllib.request",
)

# Examples of each kind for quick runs; all of them together are slow.
QUICK = ("ends_well", "equal_to_all", "fork_bomb", "file", "ten_gigabytes", "reads_the_test")

HOSTILE = {
    # processes
    "fork_bomb": "import os\nwhile True:\n    os.fork()",
    "fork_bomb_caught": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n    except KeyError: break"
    ),
    "subprocess": "import subprocess\nsubprocess.run(['touch', '/tmp/cft-hostile'])\n" + RIGHT,
    "system": "import os\ndef f(x):\n    return 3 if os.system('touch /tmp/cft-hostile') == 0 else 0",
    "exec": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'print(1)'])\n" + RIGHT,
    "multiprocessing": "import multiprocessing\nmultiprocessing.Process(target=print).start()\n" + RIGHT,
    "threads": "import threading\nfor _ in range(10000):\n    threading.Thread(target=lambda: None).start()\n" + RIGHT,
    "posix_spawn": "import os\nos.posix_spawn('/bin/touch', ['touch', '/tmp/cft-hostile'], {})\n" + RIGHT,
    # memory, time, output
    "ten_gigabytes": "x = bytearray(10 << 30)\n" + RIGHT,
    "memory_slowly": "x = []\nwhile True:\n    x.append(bytearray(1 << 20))",
    "mapped_memory": "import mmap\nx = mmap.mmap(-1, 10 << 30)\n" + RIGHT,
    "endless_loop": "while True:\n    pass",
    "endless_in_a_call": "def f(x):\n    while True:\n        pass",
    "endless_in_c": "def f(x):\n    return sum(iter(int, 1))",
    "sleeps": "import time\ndef f(x):\n    time.sleep(1000)\n    return x + 1",
    "deep_recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x):\n    return f(x)",
    "big_number": "def f(x):\n    return 9 ** 9 ** 9",
    "huge_output": "def f(x):\n    while True:\n        print('x' * 1_000_000)",
    "huge_answer": "def f(x):\n    return ['x' * 1_000_000] * 1000",
    "deep_answer": "def f(x):\n    y = []\n    for _ in range(100000):\n        y = [y]\n    return y",
    "pathological_pattern": "import re\ndef f(x):\n    re.match('(a+)+$', 'a' * 60 + 'b')\n    return x + 1",
    # files and network
    "file": "open('/tmp/cft-hostile', 'w').write('here')\n" + RIGHT,
    "file_in_a_call": "def f(x):\n    open('cft-hostile', 'w').write('here')\n    return x + 1",
    "deletes": "import shutil, os\nos.remove('/tmp/cft-kept')\n" + RIGHT,
    "reads_secrets": "x = open('/etc/passwd').read()\n" + RIGHT,
    "reads_memory_of_others": "import os\nx = open(f'/proc/{os.getpid()}/environ', 'rb').read()\n" + RIGHT,
    "temporary_file": "import tempfile\nx = tempfile.NamedTemporaryFile(delete=False)\n" + RIGHT,
    "socket": "import socket\nsocket.create_connection(('127.0.0.1', 80), 1)\n" + RIGHT,
    "listens": "import socket\ns = socket.socket()\ns.bind(('', 0))\n" + RIGHT,
    "download": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1/').read()\n" + RIGHT,
    "event_loop": "import asyncio\nasyncio.run(asyncio.sleep(0))\n" + RIGHT,
    # signals, limits, the machine's interfaces
    "kills_its_parent": "import os\nos.kill(os.getppid() if hasattr(os, 'getppid') else 1, 9)\n" + RIGHT,
    "kills_all": "import os\nos.kill(-1, 9)\n" + RIGHT,
    "ignores_signals": "import signal\nfor s in range(1, 32):\n    signal.signal(s, signal.SIG_IGN)\n" + RIGHT,
    "raises_limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (10 ** 6, 10 ** 6))\n" + RIGHT,
    "segfault": "import ctypes\nctypes.string_at(0)\n" + RIGHT,
    "system_call": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.syscall(2, b'/tmp/cft-hostile', 65, 438) < 0:\n"
        "    raise OSError(ctypes.get_errno())\n" + RIGHT
    ),
    # passes without being right
    "ends_well": "import os\nos._exit(0)",
    "ends_well_in_a_call": "import os\ndef f(x):\n    os._exit(0)",
    "exits": "import sys\nsys.exit(0)",
    "exits_in_a_call": "def f(x):\n    raise SystemExit(0)",
    "says_passed": (
        "import os, sys\nprint('all assertions hold')\nfor i in range(3, 64):\n    try:\n"
        '        os.write(i, b\'{"decision": "right", "reason": "all assertions hold"}\\n\')\n'
        "    except OSError:\n        pass\nos._exit(0)"
    ),
    "equal_to_all": (
        "class Anything:\n    def __eq__(self, other):\n        return True\n    __hash__ = object.__hash__\n"
        "def f(x):\n    return Anything()"
    ),
    "number_equal_to_all": (
        "class Any(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\n"
        "def f(x):\n    return Any(7)"
    ),
    "patches_builtins": (
        "import builtins\nclass Never(Exception):\n    pass\nbuiltins.AssertionError = Never\n"
        "builtins.__dict__['exec'] = print\ndef f(x):\n    return 7"
    ),
    "patches_the_checker": (
        "import sys\nfor name, module in list(sys.modules.items()):\n    if name.startswith('cft'):\n"
        "        for key in list(vars(module)):\n            if callable(vars(module)[key]) and not key.startswith('__'):\n"
        "                try:\n                    setattr(module, key, lambda *a, **k: {'decision': 'right', 'reason': ''})\n"
        "                except Exception:\n                    pass\ndef f(x):\n    return 7"
    ),
    "reads_the_test": (
        "import sys, gc\ndef seen():\n    frame = sys._getframe()\n    while frame:\n        yield repr(frame.f_locals)\n"
        "        frame = frame.f_back\n    for thing in gc.get_objects():\n        if isinstance(thing, (str, dict, list)):\n"
        "            yield str(thing)[:100000]\nfound = any('assert f(2) ' + '== 3' in text for text in seen())\n"
        "def f(x):\n    return x + 1 if found else 0"
    ),
    "tracing": (
        "import sys\ndef trace(frame, event, argument):\n    for name in frame.f_locals:\n        frame.f_locals[name] = 3\n"
        "    return trace\nsys.settrace(trace)\ndef f(x):\n    return 3"
    ),
    "answers_ahead": (
        "import os\nfor i in range(3, 64):\n    try:\n        os.write(i, b'[\"value\", 3, []]\\n' * 5)\n"
        "    except OSError:\n        pass\ndef f(x):\n    return 3"
    ),
    "garbage": (
        "import os\nfor i in range(3, 64):\n    try:\n        os.write(i, b'\\xff{]\\n')\n"
        "    except OSError:\n        pass\n" + RIGHT
    ),
    "closes_everything": "import os\nos.closerange(0, 64)\n" + RIGHT,
}

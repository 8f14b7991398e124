"""What workers share, loaded once in the process that they are forked from; and that all of them end with the one that
started them, however it ends.

A tokenizer takes seconds to load and hundreds of megabytes; forked workers have it for nothing. multiprocessing's forkserver takes
names of modules to import and nothing else, so it imports this one, and what to call comes by the environment. Modules are
imported while the call waits for what loads without the interpreter's lock.

On Linux the kernel kills the forkserver with this process and each worker with the forkserver (PR_SET_PDEATHSIG); everywhere
a thread of each worker waits for a pipe that closes when this process ends.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import multiprocessing.connection
import multiprocessing.forkserver
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

_VARIABLE = "DATAMIX_NURSERY"
_MAX_BYTES = 96 << 10  # Linux takes at most 128 KiB in one variable
_PR_SET_PDEATHSIG = 1


def start(modules: list[str], call: Callable[[Any], Any] | None = None, spec: Any = None) -> None:
    """Start the process now, without waiting for it: it imports ``modules`` and calls ``call(spec)``.

    Where one runs already nothing is started. A spec too large for a variable is left to each worker.
    """
    # The kernel's signal comes when the thread that started it ends: only the main thread lives as long as this process.
    bound = threading.current_thread() is threading.main_thread()
    request = base64.b64encode(pickle.dumps((bound, modules, call, spec))).decode()
    if len(request) > _MAX_BYTES:
        request = base64.b64encode(pickle.dumps((bound, modules, None, None))).decode()
    multiprocessing.set_forkserver_preload([__name__])
    os.environ[_VARIABLE] = request
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        del os.environ[_VARIABLE]


def _prepare() -> None:
    request = os.environ.pop(_VARIABLE, None)
    if request is None:
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a pool of threads would not be there after a fork
    gc.disable()
    bound, modules, call, spec = pickle.loads(base64.b64decode(request))
    if bound:
        _end_with_parent()

    def load() -> None:
        with contextlib.suppress(Exception):  # the task that needs it will say what is wrong
            if call is not None:
                call(spec)

    beside = threading.Thread(target=load)
    beside.start()
    for module in modules:
        with contextlib.suppress(ImportError):
            import_module(module)
    beside.join()
    gc.freeze()  # what is loaded stays; collections in workers leave its pages shared
    gc.enable()


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends; does nothing on other systems than Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_worker_with_parent() -> None:
    """In a worker: end with the process that started the build."""
    _end_with_parent()
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


_prepare()

"""What workers share, loaded once in the process that they are forked from.

A tokenizer takes seconds to load and hundreds of megabytes; forked workers have it for nothing. multiprocessing's forkserver takes
names of modules to import and nothing else, so it imports this one, and what to call comes by the environment. Modules are imported while
the call waits for what loads without the interpreter's lock.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import multiprocessing.forkserver
import os
import pickle
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

_VARIABLE = "DATAMIX_NURSERY"
_MAX_BYTES = 96 << 10  # Linux takes at most 128 KiB in one variable


def start(modules: list[str], call: Callable[[Any], Any], spec: Any) -> None:
    """Start the process now, without waiting for it: it imports ``modules`` and calls ``call(spec)``.

    Where one runs already nothing is started. A spec too large for a variable is left to each worker.
    """
    request = base64.b64encode(pickle.dumps((modules, call, spec))).decode()
    if len(request) > _MAX_BYTES:
        return
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
    modules, call, spec = pickle.loads(base64.b64decode(request))

    def load() -> None:
        with contextlib.suppress(Exception):  # the task that needs it will say what is wrong
            call(spec)

    beside = threading.Thread(target=load)
    beside.start()
    for module in modules:
        with contextlib.suppress(ImportError):
            import_module(module)
    beside.join()
    gc.freeze()  # what is loaded stays; collections in workers leave its pages shared
    gc.enable()


_prepare()

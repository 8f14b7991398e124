"""What workers share, made once in the process that they are forked from.

A tokenizer takes seconds to load and hundreds of megabytes; forked workers have it for nothing. multiprocessing's forkserver takes
names of modules to import and nothing else, so it imports this one, and what to call comes by the environment.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import multiprocessing.forkserver
import os
import pickle
from collections.abc import Callable
from typing import Any

_VARIABLE = "DATAMIX_NURSERY"
_MAX_BYTES = 96 << 10  # Linux takes at most 128 KiB in one variable


def start(modules: list[str], call: Callable[[Any], Any], spec: Any) -> None:
    """Start the process now, without waiting for it: it imports ``modules`` and calls ``call(spec)``.

    Where one runs already it is taken as it is. A spec too large to be told is left to each worker.
    """
    told = base64.b64encode(pickle.dumps((call, spec))).decode()
    if len(told) > _MAX_BYTES:
        return
    multiprocessing.set_forkserver_preload([*modules, __name__])
    os.environ[_VARIABLE] = told
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        del os.environ[_VARIABLE]


def _prepare() -> None:
    told = os.environ.pop(_VARIABLE, None)
    if told is None:
        return
    call, spec = pickle.loads(base64.b64decode(told))
    with contextlib.suppress(Exception):  # the task that needs it will say what is wrong
        call(spec)
    gc.freeze()  # what is here stays; collections in workers leave its pages shared


_prepare()

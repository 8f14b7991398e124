"""Kernels as machine code: numba compiles a function once, LLVM alone loads it after that.

The idea: the cache of numba saves the compiling but not numba. Importing it, what it registers and what it
searches for (scipy, where that is installed) took longer than the deduplication of 25,000 documents. Machine
code needs none of it. So the object file that numba compiles from a function in a room's ``kernels/`` is
saved, named by everything it depends on (the sources of that folder, the types of the arguments, LLVM's
version, the processor), and loaded by LLVM in 0.1 s. Nothing here imports numba before a kernel is missing.

Arguments are integers, floats, arrays, and tuples of these. numba passes tuples member by member, an array as
seven words and more (two owners, which we leave out; items, bytes of an item, address, shape, strides).
Kernels allocate nothing, return an integer or nothing, and run without the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_Nothing = ctypes.c_char * 0
_lock = threading.Lock()
_engines: list[Any] = []  # hold the loaded code


class Flat(NamedTuple):
    """An argument taken apart: once, where it is passed many times."""

    value: Any
    words: tuple[int | float, ...]
    types: tuple[Any, ...]


def flat(value: Any) -> Flat:
    """Take an argument apart. It must stay where it is as long as kernels are called with it."""
    if isinstance(value, Flat):
        return value
    if isinstance(value, np.ndarray):
        place = value.__array_interface__["data"][0]
        words = (0, 0, value.size, value.itemsize, place, *value.shape, *value.strides)
        flags = value.flags
        return Flat(value, words, ((value.dtype, value.ndim, flags.c_contiguous, flags.writeable),))
    if isinstance(value, tuple):
        parts = [flat(part) for part in value]
        members = [part.value for part in parts]
        whole = tuple(members) if type(value) is tuple else type(value)(*members)
        types = (type(value).__name__, *(part.types for part in parts))
        return Flat(whole, tuple(word for part in parts for word in part.words), types)
    number = float(value) if isinstance(value, float) else int(value)
    return Flat(number, (number,), (type(number),))


def address(numbers: np.ndarray[Any, np.dtype[np.int64]]) -> int:
    """The address of contiguous int64 numbers: four times as fast as ``numbers.ctypes.data``."""
    if numbers.dtype != np.int64:
        raise TypeError("kernels take addresses of int64 numbers")
    return ctypes.addressof(_Nothing.from_buffer(numbers.data))


class Kernel:
    """A function of ``ROOM/kernels/``, compiled for each kind of arguments that it is called with."""

    def __init__(self, room: str, module: str, name: str) -> None:
        self._module, self._name = module, name
        self._package = f"datamix.{room}.kernels.{module}"
        self._sources = Path(__file__).parent.parent / room / "kernels"
        self._loaded: dict[Any, Callable[..., int]] = {}

    def __call__(self, *arguments: Any) -> int:
        """What the kernel returns, 0 where it returns nothing."""
        whole = flat(arguments)
        return self._run(self._entry(whole), whole.words)

    def bound(self, *first: Any, num_rest: int) -> Callable[..., int]:
        """The kernel with its first arguments fixed, for calls of microseconds; the rest are whole
        numbers.
        """
        whole = flat((*first, *([0] * num_rest)))
        entry, fixed = self._entry(whole), whole.words[:-num_rest]
        words = tuple(ctypes.c_double(w) if isinstance(w, float) else ctypes.c_int64(w) for w in fixed)
        return lambda *rest: self._run(entry, (*words, *rest))

    def _run(self, entry: Callable[..., int], words: tuple[Any, ...]) -> int:
        result, error = ctypes.c_int64(), ctypes.c_void_p()
        if entry(ctypes.byref(result), ctypes.byref(error), *words):
            raise RuntimeError(f"the kernel {self._package}.{self._name} failed")
        return result.value

    def _entry(self, arguments: Flat) -> Callable[..., int]:
        entry = self._loaded.get(arguments.types)
        if entry is None:
            with _lock:
                entry = self._loaded.get(arguments.types) or self._load(arguments)
                self._loaded[arguments.types] = entry
        return entry

    def _load(self, arguments: Flat) -> Callable[..., int]:
        import llvmlite  # type: ignore[import-untyped]
        import llvmlite.binding as llvm  # type: ignore[import-untyped]

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvmlite.__version__, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        symbol, code = self._code(arguments, " ".join(target))
        machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _engines.append(engine)
        words = [ctypes.c_double if isinstance(word, float) else ctypes.c_int64 for word in arguments.words]
        prototype = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *words)
        return prototype(engine.get_function_address(symbol))

    def _code(self, arguments: Flat, target: str) -> tuple[str, bytes]:
        """Name and object file of the kernel, from where it was saved, else compiled and saved."""
        files = [*sorted(self._sources.glob("*.py")), Path(__file__).with_name("jit.py")]
        sources = [path.read_bytes() for path in files]
        parts = [*sources, target.encode(), repr(arguments.types).encode()]
        key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]
        name = f"{self._module}.{self._name}-{key}.kernel"
        for folder in _folders(self._sources):
            try:
                symbol, _, code = (folder / name).read_bytes().partition(b"\n")
            except OSError:
                continue
            return symbol.decode(), code
        symbol_name, code = _compile(self._package, self._name, arguments.value)
        _save(_folders(self._sources), name, symbol_name.encode() + b"\n" + code)
        return symbol_name, code


def _compile(module: str, name: str, arguments: tuple[Any, ...]) -> tuple[str, bytes]:
    from importlib import import_module

    import numba
    from numba import typeof

    function = getattr(import_module(module), name)
    types = tuple(map(typeof, arguments))
    function.compile(types)
    result = function.overloads[types]
    try:  # private names of numba, hence its ceiling in pyproject.toml
        _, _, (code, _) = result.library.serialize_using_object_code()
        return result.fndesc.llvm_func_name, code
    except (AttributeError, TypeError, ValueError) as error:
        raise RuntimeError(
            f"datamix cannot use kernels compiled by numba {numba.__version__} ({error}). Install a version "
            f"that it is tested with: `pip install 'numba<0.69' 'llvmlite<0.51'`."
        ) from error


def _folders(sources: Path) -> list[Path]:
    """Folders for object files, the first that can be written is used: as numba does it, and with its
    variable.
    """
    folder = os.environ.get("NUMBA_CACHE_DIR")
    if folder:
        return [Path(folder)]
    return [sources / "__pycache__", Path.home() / ".cache" / "datamix" / "kernels"]


def _save(folders: list[Path], name: str, content: bytes) -> None:
    """Write a file as a whole; where no folder can be written, the next process compiles again."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            draft = folder / f"{name}.{os.getpid()}"
            draft.write_bytes(content)
            draft.replace(folder / name)
        except OSError:
            continue
        return

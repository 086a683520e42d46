"""Compilation of the CPU kernels: lazily, without the GIL, and from a cache on disk where there is
one.

Requirements: numba. This module is imported by the first call on a CPU tensor, never by `import
softdtw_kernels`.
"""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from numba import types
from numba.core import config as numba_config
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime import rtsys
from numba.extending import intrinsic

from .._interrupts import interrupts_wait
from .parts import part_options

config: Any = numba_config  # sets its names at run time


def sources() -> list[Path]:
    """What the compiled kernels may depend on: every module of their folder, whatever its name."""
    return sorted(Path(__file__).parent.glob("*.py"))


def _digest_of_sources() -> str:
    """A name for this state of the kernels.

    Numba renews a cached entry point when the file that defines it changes, not when a helper in
    another file does. With the digest in its name it is renewed for every change of the kernels.
    """
    digest = hashlib.blake2b(digest_size=6)
    for source in sources():
        digest.update(source.read_bytes())
    return digest.hexdigest()


_DIGEST = _digest_of_sources()
_told: set[str] = set()


def _tell_once(trouble: str, advice: str) -> None:
    """Warn of one kind of trouble once a process, however many kernels meet it."""
    if trouble not in _told:
        _told.add(trouble)
        warnings.warn(f"softdtw_kernels: {trouble}{advice}", RuntimeWarning, stacklevel=2)


class _Files(IndexDataCacheFile):
    """Numba's index and data files, each behind a checksum of its content.

    Numba raises whatever a damaged file makes of unpickling, or runs damaged code. Here such a file
    counts as absent: the kernel is compiled again, and the file replaced.
    """

    _CHECKSUM = 16  # bytes

    def _checksum(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=self._CHECKSUM).digest()

    def _read(self, path: str) -> bytes | None:
        """The content of a file; None if it is not there or not whole."""
        try:
            stored = Path(path).read_bytes()
        except OSError:
            return None
        content = stored[self._CHECKSUM :]
        if stored[: self._CHECKSUM] == self._checksum(content):
            return content
        _tell_once(
            f"damaged files of compiled kernels in {self._cache_path}",
            "; these kernels are compiled again, which takes some seconds, and the files replaced.",
        )
        return None

    def _write(self, path: str, content: bytes) -> None:
        with self._open_for_write(path) as file:
            file.write(self._checksum(content) + content)

    def _load_index(self) -> dict[Any, str]:
        content = self._read(self._index_path)
        if content is None:
            return {}
        version, rest = pickle.loads(content)
        if version != self._version:  # what follows may be pickled in another way
            return {}
        stamp, overloads = pickle.loads(rest)
        return overloads if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        rest = self._dump((self._source_stamp, overloads))
        self._write(self._index_path, pickle.dumps((self._version, rest)))

    def _load_data(self, name: str) -> Any:
        content = self._read(self._data_path(name))
        return (None, None) if content is None else pickle.loads(content)

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), self._dump(data))

    def load(self, key: Any) -> Any:
        """The data of a key, or None. Processes that race may leave the data of another key."""
        stored = super().load(key)
        return stored[1] if stored is not None and stored[0] == key else None

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (key, data))


class _Cache(FunctionCache):
    """Numba's cache on disk, read without importing what only compilation needs.

    Numba first loads its implementations of all that it can compile (and SciPy, if installed):
    three quarters of the time that the first call of a later process takes. The compiler loads
    them itself.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _Files(
            self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp()
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)  # the memory of arrays that kernels make
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:  # a full disk must not fail a call that has been computed
            _tell_once(
                f"compiled kernels could not be written to {self._cache_path} ({error})",
                f"; {_ADVICE}",
            )


_ADVICE = (
    "each process compiles the kernels anew, about ten seconds. Set the environment variable "
    "NUMBA_CACHE_DIR to a folder that can be written."
)


Signature = tuple[types.Type, ...]


def _with_layout_a(t: types.Type) -> types.Type:
    """The type of matrices of all strides, or of a tuple with such; any other type as it is."""
    if isinstance(t, types.Array) and t.ndim > 3:
        return t.copy(layout="A")
    if isinstance(t, types.Tuple | types.UniTuple):
        return types.BaseTuple.from_types(tuple(map(_with_layout_a, t)))
    return t


def _of_any_strides(signature: Signature) -> Signature:
    """The signature of the compiled form that does a call: one for matrices of all strides.

    A form of its own for contiguous ones would take seconds to compile, and not be faster: whether
    rows are contiguous is asked where it counts, once for many cells.
    """
    return tuple(map(_with_layout_a, signature))


def _of_contiguous(signature: Signature) -> Signature:
    """One form for matrices that are all contiguous, and one for all others."""
    matrices = [t for t in signature if isinstance(t, types.Array) and t.ndim > 3]
    return signature if all(t.layout == "C" for t in matrices) else _of_any_strides(signature)


def enabled(call: Callable[..., Any], *arguments: Any) -> Any:
    """A call of Numba's compiler, whatever NUMBA_DISABLE_JIT says: it is for functions of which
    somebody wants to see or count the lines, and ours use instructions that Python does not have.
    """
    if not config.DISABLE_JIT:
        return call(*arguments)
    with global_compiler_lock:
        before, config.DISABLE_JIT = config.DISABLE_JIT, 0
        try:
            return call(*arguments)
        finally:
            config.DISABLE_JIT = before


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """A function that Numba compiles at its first call."""
    return enabled(lambda: numba.jit(**options)(function))


if hasattr(os, "register_at_fork"):
    # A child of a process that compiles in another thread would wait for that thread for ever.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


@contextmanager
def _without_collection() -> Iterator[None]:
    """Numba makes millions of objects while it compiles, which live until it is done: looking for
    garbage among them took a tenth of the time.
    """
    with global_compiler_lock:  # so that of two threads the second does not find what the first set
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()


def _share_forms(dispatcher: Any, form_of: Callable[[Signature], Signature]) -> None:
    """Let the first call with other types than before choose its form."""
    compile_form = dispatcher._compile_for_args
    known: set[Signature] = set()

    def choose(*arguments: Any) -> Any:
        own = tuple(map(dispatcher.typeof_pyval, arguments))
        form = form_of(own)
        # What Ctrl-C stops in Numba does not go on later, and what is raised in what LLVM calls is
        # lost: nothing would compile in this process any more.
        with interrupts_wait(), _without_collection():
            if form == own:
                return enabled(compile_form, *arguments)
            entry = enabled(dispatcher.compile, form)
        # Once: of two that are the same, Numba finds none, and each call comes here.
        with global_compiler_lock:
            if own not in known:
                known.add(own)
                dispatcher._insert([t._code for t in own], entry, False)  # found by later calls
        return entry

    dispatcher._compile_for_args = choose


def jit(
    function: Callable[..., Any],
    form_of: Callable[[Signature], Signature] = _of_any_strides,
    **options: Any,
) -> Any:
    """Compile an entry point at its first call: no GIL, cached on disk if any location is writable.

    Numba raises if it finds no place for its cache (a read-only installation with no home
    directory); the kernels then compile once per process instead, with a warning.
    """
    function.__qualname__ = f"{function.__name__}_{_DIGEST}"
    options |= {"nopython": True, "nogil": True, "error_model": "numpy"}
    dispatcher = compiled(function, **options)
    _share_forms(dispatcher, form_of)
    try:
        dispatcher._cache = _Cache(function)
    except RuntimeError:  # Numba's own stays: one that holds nothing
        _tell_once("no folder for compiled kernels can be written", f"; {_ADVICE}")
    return dispatcher


def jit_contiguous(function: Callable[..., Any]) -> Any:
    """As jit, and once more for matrices that are all contiguous: for loops over them of which LLVM
    then makes vectors.
    """
    return jit(function, form_of=_of_contiguous)


def jit_reassociated(function: Callable[..., Any]) -> Any:
    """As jit, for sums that may be split into lanes and fused; NaN and inf keep their rules."""
    return jit(function, fastmath={"reassoc", "contract", "nsz"})


# Nothing but a kernel calls a helper, so it needs no entry from Python or C. Nor does it count who
# holds an array: those atomic additions took a tenth of the time of small pairs.
HELPER: Any = {
    "nopython": True,
    "nogil": True,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "_nrt": False,
} | part_options()


def inline(function: Callable[..., Any]) -> Any:
    """Compile a helper that is inlined into the entry points which call it."""
    return compiled(function, **HELPER, forceinline=True)


def outlined(function: Callable[..., Any]) -> Any:
    """Compile a helper that stays a function of its own: large, called once for many cells."""
    return compiled(function, **HELPER)


def allocating(function: Callable[..., Any]) -> Any:
    """As outlined, for a helper that makes arrays."""
    return compiled(function, **HELPER | {"_nrt": True})


@intrinsic
def plain(typingctx, value):
    """The value without its literal type.

    Numba compiles a helper once more for every constant that it is called with, and for the first
    value of a variable that starts as one: half of the compile time, if nothing is done about it.
    """

    def codegen(context, builder, sig, args):
        return context.cast(builder, args[0], sig.args[0], sig.return_type)

    return types.unliteral(value)(value), codegen

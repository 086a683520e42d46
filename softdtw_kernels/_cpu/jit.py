"""Compilation of the CPU kernels: lazily, without the GIL, and from a cache on disk where there is
one.

Requirements: numba. This module is imported by the first call on a CPU tensor, never by `import
softdtw_kernels`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import types
from numba.core.caching import FunctionCache
from numba.core.runtime import rtsys
from numba.extending import intrinsic


def _digest_of_sources() -> str:
    """A name for this state of the kernels.

    Numba renews a cached entry point when the file that defines it changes, not when a helper in
    another file does. With the digest in its name it is renewed for every change of the kernels.
    """
    digest = hashlib.blake2b(digest_size=6)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


_DIGEST = _digest_of_sources()


class _Cache(FunctionCache):
    """Numba's cache on disk, read without importing what only compilation needs.

    Numba first loads its implementations of all that it can compile (and SciPy, if installed):
    three quarters of the time that the first call of a later process takes. The compiler loads
    them itself.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)  # the memory of arrays that kernels make
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """Compile an entry point at its first call: no GIL, cached on disk if any location is writable.

    Numba raises if it finds no place for its cache (a read-only installation with no home
    directory); the kernels then compile once per process instead.
    """
    function.__qualname__ = f"{function.__name__}_{_DIGEST}"
    options |= {"nopython": True, "nogil": True, "error_model": "numpy"}
    dispatcher = numba.jit(**options)(function)
    # without a place for the cache, Numba's own stays: one that holds nothing
    with contextlib.suppress(RuntimeError):
        dispatcher._cache = _Cache(function)
    return dispatcher


def jit_reassociated(function: Callable[..., Any]) -> Any:
    """As jit, for sums that may be split into lanes and fused; NaN and inf keep their rules."""
    return jit(function, fastmath={"reassoc", "contract", "nsz"})


# Nothing but a kernel calls a helper, so it needs no entry from Python or C.
_HELPER: dict[str, Any] = {
    "nopython": True,
    "nogil": True,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


def inline(function: Callable[..., Any]) -> Any:
    """Compile a helper that is inlined into the entry points which call it."""
    return numba.jit(**_HELPER, forceinline=True)(function)


def outlined(function: Callable[..., Any]) -> Any:
    """Compile a helper that stays a function of its own: large, called once for many cells."""
    return numba.jit(**_HELPER)(function)


@intrinsic
def plain(typingctx, value):
    """The value without its literal type.

    Numba compiles a helper once more for every constant that it is called with, and for the first
    value of a variable that starts as one: half of the compile time, if nothing is done about it.
    """

    def codegen(context, builder, sig, args):
        return context.cast(builder, args[0], sig.args[0], sig.return_type)

    return types.unliteral(value)(value), codegen

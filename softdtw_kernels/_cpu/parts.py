"""How helpers are compiled: as parts of the entry points that call them.

Requirements: numba. Numba makes of every function, helpers included, an optimized library with
machine code of its own, and links it into those that call it, where LLVM does all of it once more.
Nothing but an entry point calls a helper. So its library stays as Numba writes it, and LLVM works
on whole entry points only: this saves a third of the time that compilation takes.

Numba does not promise to keep the names used here. Where one is missing, helpers are compiled as
any other function.
"""

from __future__ import annotations

from typing import Any

from numba.core import codegen, compiler


class _Nowhere:
    """In place of the engine that runs code: what is not in it needs no environment."""

    def set_env(self, name: str, environment: Any) -> None:
        pass


def part_options() -> dict[str, Any]:
    """Options of `numba.jit` that make a function a part; none where Numba has other names."""
    library = getattr(codegen, "JITCodeLibrary", None)
    pipeline = getattr(compiler, "Compiler", None)
    changed = ["_optimize_final_module", "_finalize_final_module", "get_pointer_to_function"]
    if pipeline is None or not all(hasattr(library, name) for name in [*changed, "codegen"]):
        return {}

    class Part(library):  # type: ignore[misc, valid-type]  # a class found at run time
        """The library of a helper."""

        @property
        def codegen(self) -> Any:
            return _Nowhere()

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_final_module(self) -> None:
            self._finalized = True

        def get_pointer_to_function(self, name: str) -> int:
            return 0  # as of any function without an entry from Python

    class PartCompiler(pipeline):  # type: ignore[misc, valid-type]  # likewise
        """Numba's compiler, which writes into the library that it is given."""

        def __init__(self, typing: Any, target: Any, given: Any, *arguments: Any) -> None:
            own = Part(target.codegen(), "part") if given is None else given
            super().__init__(typing, target, own, *arguments)

    return {"pipeline_class": PartCompiler}

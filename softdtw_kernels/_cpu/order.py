"""`min` and `max` of two numbers, written where they are asked for: Numba compiles a function for
those of Python with each pair of types, which takes the first kernel some time.

Requirements: numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin


def min(a: Any, b: Any) -> Any:
    """As in Python, NaN included."""
    return b if b < a else a


def max(a: Any, b: Any) -> Any:
    """As in Python, NaN included."""
    return b if b > a else a


def define(function: Callable[..., Any], comparison: str) -> None:
    @infer_global(function)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            kind = self.context.unify_types(*map(types.unliteral, args))
            return None if kind is None else signature(kind, kind, kind)

    @lower_builtin(function, types.Number, types.Number)
    def lower(context, builder, sig, args):
        a, b = args
        is_float = isinstance(sig.return_type, types.Float)
        compare = builder.fcmp_ordered if is_float else builder.icmp_signed
        return builder.select(compare(comparison, b, a), b, a)


define(min, "<")
define(max, ">")

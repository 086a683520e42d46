"""The CPU engine: the operators on CPU tensors by vectorized Numba kernels.

`operators` is the backend: every function of `_backends.Backend`, from torch tensors to arrays and
back. `solve` picks the tier for each pair: `lanes` (pairs side by side in a vector) and `strips`
(one large pair, by `tiles`) in the costs' precision, which certify their results (`scaling`), and
`exact`, the scalar tier that needs no certificate. `cell` is the recursion in a vector, `simd` and
`floating` its instructions, `jit` and `threads` how kernels are compiled and run. Only
`_backends.load` imports this package, at the first call on a CPU tensor; it needs numba.
"""

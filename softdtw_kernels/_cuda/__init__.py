"""The CUDA engine: the operators on CUDA tensors by raw CUDA kernels, launched through CuPy.

`operators` is the backend: it has every function of `_backends.Backend`, and asks which kernels a
call goes to. A call becomes a batch of `fields`, a `plan` of who computes what by which `variants`,
a `recipe` of launches made once for its shapes, and a run by the `launcher`, or by the emulator of
the tests. `tiny` has the kernels of a thread for each pair, `lattice` those of warps and strips,
`features` those that store no cost, `sweeps` what the last two share; `source` holds the kernels.
Only `_backends.load` imports this package, at the first call on a CUDA tensor; CuPy is needed then.
"""

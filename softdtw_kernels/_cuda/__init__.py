"""The CUDA engine: the operators on CUDA tensors by raw CUDA kernels, launched through CuPy.

`operators` is the backend: every function of `_backends.Backend`. A call becomes a batch (`fields`),
a plan of who computes what (`variants`, `plan`), a recipe of launches made once for its shapes
(`recipe`), and a launch (`launcher`, or the emulator of the tests). `tiny` has the kernels of a
thread for each pair, `lattice` those of warps and strips, `features` those that store no cost;
`source` holds the kernels. Only `_backends.load` imports this package, at the first call on a CUDA
tensor; calling it needs CuPy.
"""

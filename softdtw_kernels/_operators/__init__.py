"""The seam between the public functions and the kernels: torch operators and their derivatives.

`ops` defines the torch.library operators, which the engines of `_backends` implement, and `kernels`
calls them below autograd. `recursion`, `smoothing`, `distances` and `from_features` are the
autograd Functions over them; `function` is what all Functions have in common; `derivatives` gives
the Functions to the operators themselves, for programs that are exported or traced. `compositions`
implements operators by others where no kernel does. The public modules call these.
"""

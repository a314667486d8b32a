"""The operations that make a sparse dictionary cheap, each with a plain reference beside it.

One step of training goes through these files, from top to bottom. R rows are tokens (times sources), D
is the width, C columns are features, and nnz entries are stored.

    x [R, D], W_enc [C, D], b [C]
     |
     |  topk_encode, threshold_encode or batchtopk_encode: which entries of x W_enc^T + b are active?
     |      routes.select asks dispatch.choose once, and takes one of
     |        fixed      fixed_point.bounded -> Tiled -> tiles.strips -> <op>/compiled.py
     |        loop       tiles.exact         -> Tiled -> tiles.strips -> <op>/compiled.py
     |                   small products: linear.passing -> [R, C] -> <op>/compiled.py
     |        dense      linear.passing -> [R, C] -> <op>/cpu.py, or a comparison
     |        certified  bounds.terms (rounded.rounded) -> <op>/triton.py, or torch's matmul
     |                   -> candidates and a bound of the others -> bounds.at evaluates candidates
     |        reference  <op>/reference.py
     v
    Selection: (row_starts [R + 1], columns [nnz], values [nnz]), CSR without a gradient
     |
     |  Pattern(row_starts, columns, C) has the positions; it sorts them by column at most once
     |  sparse_encode(pattern, x, W_enc, b, known=values) -> the values [nnz], with their gradient
     |  decode_error(pattern, values, W_dec, y) -> (squared error, y - y_hat), with their gradients
     |  or sparse_decode(pattern, values, W_dec) -> y_hat [R, D]; transforms.transform for a MOLT
     v
    backward: each product is one method of Pattern
     |
     |  pattern.matmul -> bag, pattern.sampled -> sampled: gradients of values and of x
     |  weight_grad: gradients of W_enc and W_dec. The active Collector takes their factors;
     |      without one pattern.transposed_matmul -> bag makes them [C, D]
     v
    fused_adam.measure(rows, gradients) -> the gradient's norm after the projection
    fused_adam.update(rows, gradients, moments, ...) -> weights and moments move, row by row

Every operation chooses like that: `dispatch.choose(op, tensor, ...)` names an implementation, and the
operation's `__init__.py` calls it. `dispatch.summary()` says what ran. A folder holds

    __init__.py    the interface: shapes, gradients, the choice
    reference.py   the specification, in dense torch, which tests compare with
    cpu.py         a few calls of torch
    compiled.py    loops compiled by numba, for float32 on a CPU
    triton.py      kernels for a GPU, with `shipped()`, the configurations that tests compile

and what several operations share lies beside the folders:

    dispatch, routes                  the choice; for the three encoders
    selection, csr, pattern           selected entries, loops that rearrange them, products with them
    bounds, rounded, fixed_point      upper bounds of a product in low precision (derivations.md)
    tiles, microkernel, vector        products by tiles; a tile in registers; LLVM's instructions
    compiled, threads, memory         how loops are compiled, share threads, and reuse buffers
    linear, shipped                   dense pre-activations; a Triton kernel's configuration
"""

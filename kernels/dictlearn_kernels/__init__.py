"""The operations that make a sparse dictionary cheap, each with a plain reference beside it.

One folder an operation: `reference.py` is dense, differentiable torch and the specification;
the fast path computes the same outputs and gradients without a dense code or a dense gradient of it.
"""

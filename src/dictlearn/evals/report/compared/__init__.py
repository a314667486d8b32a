"""Compares several runs, for `dictlearn compare` and after a multirun. Nothing here imports torch."""

"""Dictionaries: encoder, sparsity and decoder composed, one file a kind."""

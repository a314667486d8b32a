"""Stores of activations: the protocol, the formats and the locations of files."""

"""Stores of activations: the protocol of all formats, our own format, and where the files lie."""

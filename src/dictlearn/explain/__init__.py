"""Descriptions of features and what they are worth: found by search, or written by a language model."""

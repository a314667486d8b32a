"""Describes features, by search or by a language model, and scores the descriptions."""

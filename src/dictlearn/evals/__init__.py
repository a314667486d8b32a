"""Streaming metrics of a dictionary over held-out text, beside baselines."""

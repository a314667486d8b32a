"""What a dictionary is worth: streaming metrics over held-out text, beside honest baselines."""

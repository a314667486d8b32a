"""What a run's features/ folder holds: statistics and examples of features, and what they mean."""

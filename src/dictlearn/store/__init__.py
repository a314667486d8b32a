"""What is known of a dictionary's features, on disk: written by `dictlearn features`, read by all."""

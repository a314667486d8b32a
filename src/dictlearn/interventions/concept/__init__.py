"""A study of steering: how often a concept is in what a model writes, against what the change costs."""

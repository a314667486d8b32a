"""A frozen model with dictionaries in it: changes of features and directions, and their effects."""

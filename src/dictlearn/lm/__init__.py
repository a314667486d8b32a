"""The language model, frozen: load it, name places in it, read them, put something else there."""

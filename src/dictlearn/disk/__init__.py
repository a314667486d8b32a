"""Writes files whole or not at all, even if the disk fills up or the process dies."""

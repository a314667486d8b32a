"""How anything reaches the disk: whole or not at all, whenever the disk fills up or the process dies."""

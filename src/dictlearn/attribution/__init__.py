"""Attribution graphs: what a dictionary's features do to each other and to the next token."""

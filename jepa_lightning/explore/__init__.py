"""A page to look inside: what a network attends to, what it knows of a patch, what it expects where it sees nothing."""

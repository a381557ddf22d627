"""One function, in both modes: its specification, its way to workers, chains and recordings."""

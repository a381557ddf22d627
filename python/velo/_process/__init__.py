"""The client of process mode: its supervisor, its links to workers, and the choice among them."""

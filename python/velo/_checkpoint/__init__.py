"""Checkpoints: the states of keys and the positions of a source, kept on disk."""

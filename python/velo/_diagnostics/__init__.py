"""Counters, logs, warnings and traces of streams and workers."""

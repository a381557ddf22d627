"""What velo says of streams and workers: counters, logs, warnings, traces."""

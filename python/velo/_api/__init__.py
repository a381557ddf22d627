"""Stream functions, streams and sessions: what users call."""

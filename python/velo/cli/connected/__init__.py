"""`velo run` where an input or the output is a URL: sources and sinks of `velo.connect`."""

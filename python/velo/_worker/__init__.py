"""The code of zygotes and workers. It imports nothing from the client's side."""

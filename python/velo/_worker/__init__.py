"""What runs in the processes that velo starts. Nothing here knows the client's side."""

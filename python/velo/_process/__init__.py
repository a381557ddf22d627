"""The client of process mode: workers, links to them, and the supervisor that has them."""

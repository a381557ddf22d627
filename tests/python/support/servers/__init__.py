"""Real servers for tests of connectors: each in its own folder, on its own loopback port."""

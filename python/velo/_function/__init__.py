"""One function: how it is called, named, sent to a worker and recorded. Both modes use this."""

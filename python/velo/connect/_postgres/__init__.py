"""PostgreSQL: an outbox table as a source, rows of tables as a sink."""

from velo.connect._postgres.endpoint import Postgres, of_url, postgres

__all__ = ["Postgres", "of_url", "postgres"]

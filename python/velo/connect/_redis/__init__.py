"""Redis Streams: read by id or as a consumer of a group, and written with XADD."""

from velo.connect._redis.endpoint import Redis, of_url, redis

__all__ = ["Redis", "of_url", "redis"]

"""Kafka: topics as sources and sinks."""

from velo.connect._kafka.endpoint import Kafka, kafka, of_url

__all__ = ["Kafka", "kafka", "of_url"]

"""RabbitMQ: queues as a source that acknowledges what is handled, exchanges as a sink."""

from velo.connect._rabbitmq.endpoint import RabbitMq, of_url, rabbitmq

__all__ = ["RabbitMq", "of_url", "rabbitmq"]

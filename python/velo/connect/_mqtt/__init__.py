"""MQTT 5: a source that acknowledges what is handled, and a sink, by paho-mqtt."""

from velo.connect._mqtt.endpoint import Mqtt, mqtt, of_url

__all__ = ["Mqtt", "mqtt", "of_url"]

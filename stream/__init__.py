"""Moves: logs in, replies out; the only room that knows Kafka and waits."""

"""The durable worker service."""

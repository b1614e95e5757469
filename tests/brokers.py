"""The dispatcher's broker, for tests that watch what it publishes."""

from typing import Any

from worker.dispatcher import Broker


def broker_with(**kept: Any) -> Broker:
    """A broker that takes everything and has nothing waiting, but for what is given."""
    return Broker(
        **{
            "publish": lambda stage, claims: None,
            "probe": lambda: None,
            "depth": lambda: 0,
            "observe": lambda lease: None,
            "publish_side": lambda kind, claim: None,
            "side_depth": lambda: 0,
            **kept,
        }
    )

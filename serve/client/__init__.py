"""The service from the other side: what `troupe submit` and `troupe tasks` ask it with."""

from serve.client.client import Client

__all__ = ["Client"]

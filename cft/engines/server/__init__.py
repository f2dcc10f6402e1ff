"""Servers that take and give token ids, as an engine: wires, client, contract."""

from cft.engines.server.engine import Server, ServerEngine

__all__ = ["Server", "ServerEngine"]

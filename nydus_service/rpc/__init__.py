"""Shared code of this project's gRPC clients and servers: channels, and the cancellation of calls."""

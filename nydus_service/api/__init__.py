"""The daemon's API over gRPC: the service, its server, and a client."""

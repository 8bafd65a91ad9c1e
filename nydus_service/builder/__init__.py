"""Runs builder processes: any program that implements the `nydus-image` command line."""

"""Drives a builder process: any program that speaks the `nydus-image` command line."""

"""The daemon: makes stores, builders, jobs and servers from the configuration, and ends them in order."""

"""The embedded builder: the `nydus-image` command line in Python, run as a separate process.

It does not depend on the service around it, so other tools may use it as their builder.
"""

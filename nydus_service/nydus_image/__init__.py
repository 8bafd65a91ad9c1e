"""The embedded builder: the `nydus-image` command line in Python, run as a process of its own.

It knows nothing of the service around it: other tools may take it as their builder, too.
"""

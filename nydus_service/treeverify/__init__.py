"""Compares the file tree of a result with that of its source: `python -m nydus_service.treeverify REQUEST`.

It knows tar-splits and RAFS, and neither images nor stores: conversions and imagecheck/ run it as a process.

The source is what the tar-splits of the layers say (tarsplit/), the result what a bootstrap and its blobs
hold. `apply.py` does to the tar-splits what containerd does to the layers, `compare.py` holds the two
trees against each other. Nothing here shares code with the builder but how RAFS is read.
"""

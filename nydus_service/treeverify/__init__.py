"""Compares the file tree of a result with that of its source: `python -m nydus_service.treeverify REQUEST`.

It handles tar-splits and RAFS, but neither images nor stores. Conversions and imagecheck/ run it as a
process.

The source tree comes from the tar-splits of the layers (tarsplit/), the result tree from a bootstrap and its
blobs. `apply.py` applies the tar-splits as containerd applies the layers; `compare.py` compares the trees.
The only code shared with the builder is the reader of RAFS.
"""

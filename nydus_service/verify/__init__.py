"""Source against result, in a process of its own: `python -m nydus_service.verify REQUEST.json`.

The source is what the layers' notes say (oci/layernotes.py), the result what a bootstrap and its blobs
hold. `overlay.py` does to the notes what containerd does to the layers, `compare.py` holds the two
trees against each other. Nothing here shares code with the builder but how RAFS is read.
"""

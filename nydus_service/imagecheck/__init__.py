"""Check a published image: its documents, blobs and bootstrap, and the image that it was made from.

This package reads images in stores. A separate process, treeverify/, compares the two file trees.
"""

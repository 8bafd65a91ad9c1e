"""The check of a published image: its documents, blobs and bootstrap, and the image that it was made of.

It looks at images in stores. The comparison of the two file trees is the work of a process of its own,
treeverify/.
"""

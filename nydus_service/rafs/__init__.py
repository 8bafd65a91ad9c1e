"""RAFS v6: the file system format of nydus images, EROFS plus nydus' own tables.

Pure: bytes in, values out. `reader` and `writer` hold the bootstrap (metadata), `blob`, `toc` and
`chunkinfo` the data blob around it, `tree` the file tree between them.
"""

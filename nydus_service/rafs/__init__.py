"""RAFS v6: the file system format of nydus images, EROFS plus nydus' own tables.

Pure: bytes in, values out. `reader` and `writer` handle the bootstrap (metadata); `blob`, `toc` and
`chunkinfo` handle the data blob around it; `zran` and `libz` read gzip layers at random; `tree` is the
file tree between them.
"""

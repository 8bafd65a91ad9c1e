"""What a layer's tar says, kept without its content: raw headers and digests, as tar-split keeps them. Pure.

There are two parsers of layer tars. This one records the source side of a verification while the bytes
pass on their way to any builder; treeverify/ reads the record later. The other one, layertar/, is the
embedded builder's. Neither imports the other, so that a header that one of them misreads shows as a
difference.
"""

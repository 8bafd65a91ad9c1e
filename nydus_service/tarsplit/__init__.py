"""Records a layer's tar without its content: raw headers and digests, similar to tar-split. Pure.

This project has two parsers of layer tars. This one records the source side of a verification while the bytes
pass to any builder; treeverify/ reads the record later. The other, layertar/, is part of the embedded
builder. Neither imports the other, so that a header misread by one of them shows as a difference.
"""

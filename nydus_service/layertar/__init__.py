"""The builder's reader of layer tars: interpreted entries, and content in chunks. Pure.

This project has two parsers of layer tars. This one serves the builder, which needs paths, owners, xattrs and
content at once. The other, tarsplit/, serves the verification. Neither imports the other, so that a header
misread by one of them shows as a difference.
"""

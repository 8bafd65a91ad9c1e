"""The builder's reader of layer tars: entries with their meaning, content in chunks. Pure.

There are two parsers of layer tars. This one feeds the builder, which needs paths, owners, xattrs and
content at once. The other one, tarsplit/, feeds the verification. Neither imports the other, so that a
header that one of them misreads shows as a difference.
"""

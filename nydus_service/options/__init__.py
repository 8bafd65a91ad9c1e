"""The options of a conversion, each declared once. What the doors need of one derives from its declaration.

`build.BuildOptions` decides the bytes of blobs and bootstraps, `convert.ConvertOptions` the rest of an image.
An option is a field: its name, type and default, and an `option.Option` in its annotation. From these derive
the command line and its help, the label `convert.options`, the configuration, the message of the API, the
arguments of builders and their parser, the checks and the fingerprints. A new option is one more field, and
its use.

The embedded builder loads this before it prints its help: option.py and build.py import next to nothing.
"""

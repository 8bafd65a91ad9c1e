"""The options of a conversion, each declared once. All interfaces derive from the declarations.

`build.BuildOptions` decides the bytes of blobs and bootstraps, `convert.ConvertOptions` the rest of an image.
An option is a field: its name, type and default, and an `option.Option` in its annotation. The command line
and its help, the label `convert.options`, the configuration, the message of the API, the arguments of
builders and their parser, the checks and the fingerprints all derive from these. Adding an option means
adding one field and the code that uses it.

The embedded builder loads this package before it prints its help, so option.py and build.py import very
little.
"""

"""The version of the package, in a module that costs nothing to import."""

VERSION = "0.2.0"

"""The version, in a module that imports nothing: setup.py reads it and provenance records it."""

__version__ = "0.1.0"

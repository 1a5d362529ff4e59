"""The version of this package, alone so that everything may see it."""

__version__ = "0.1.0"

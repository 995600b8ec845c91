"""The version of this package; nodes tell it to the broker."""

__version__ = "0.1.0"

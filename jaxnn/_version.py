"""The version of this library, read by the package, by its reports and when a wheel is built."""

__version__ = "0.1.0"

"""Shared internals: argument checks, files, cache, printable text, lazy imports."""

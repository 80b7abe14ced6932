"""Programs for who maintains the course; `python -m tools.NAME`, or a target of the Makefile."""

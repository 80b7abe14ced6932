"""What the other parts lean on: checked arguments, files, cache, printable text, lazy imports."""

"""One HTML page on a run, or on loose files: complete in itself, without a network: ``lookless report``."""

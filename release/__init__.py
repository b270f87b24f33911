"""What a release is made of: lock files (``python -m release.locks``), and its steps (``python -m release``)."""

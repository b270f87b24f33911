"""What a release is made of: lock files (``python -m release.locks``) and the release itself (``python -m release``)."""

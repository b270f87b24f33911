"""How the reference models are trained: ``python -m training.train``, from the root of the repository."""

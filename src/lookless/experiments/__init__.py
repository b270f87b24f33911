"""The papers' experiments as commands: each a description and a function from a model and samples to tables."""

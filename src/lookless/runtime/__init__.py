"""A plan in force on a model of transformers: from the rows of a prompt to one layer to a patched model."""

"""Plans found by trying plans."""

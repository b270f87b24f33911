"""Methods side by side at one price: the tables of docs/results.md."""

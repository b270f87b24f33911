"""``lookless doctor``: does a plan run right on this machine and this model? A page to be pasted into an issue."""

"""The site: docs/ and the documents of the root as pages of MkDocs, and pages written from the code. `make docs`."""

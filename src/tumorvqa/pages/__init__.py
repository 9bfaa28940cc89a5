"""Self-contained pages: of a case, and of a whole set."""

"""States that earlier releases left behind, and the way to open them: see ``README.md``."""

"""A client's state, sent along by value or kept on the server: see ``README.md``."""

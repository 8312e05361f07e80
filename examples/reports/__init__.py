"""A task that is a class, and a pool that grows and shrinks under it: see ``README.md``."""

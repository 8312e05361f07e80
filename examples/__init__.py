"""Example apps: each is a small package, run from the repository's root by one command."""

"""What another process sees of a task, from PENDING to its end and after: see ``README.md``."""

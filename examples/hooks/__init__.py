"""Who is told of a task's moves, in which process, and how to wait for them: see ``README.md``."""

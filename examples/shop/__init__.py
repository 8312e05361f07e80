"""An order that several workers move, and a charge that comes twice: see ``README.md``."""

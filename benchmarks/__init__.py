"""What the library costs beside what it is measured against; ``python -m benchmarks``."""

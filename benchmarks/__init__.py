"""What a container costs, from start to exit, beside its peers and the kernel's own floor: ``python -m benchmarks``."""

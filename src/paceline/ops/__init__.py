"""One operation a file: a torch reference, and kernels with the same signature."""

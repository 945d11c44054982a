"""One decoder for the Llama family, what its configuration says, and how its weights are read."""

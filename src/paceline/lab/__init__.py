"""Measurements and proofs on top of the public engine."""

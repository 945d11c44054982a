"""The algorithm of speculative decoding as pure tensor functions.

No state, no generator, no device branch, no host read, no shape that depends on data.
"""

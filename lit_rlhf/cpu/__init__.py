"""Layers, attention and decoding made for CPUs; results are those of the plain path."""

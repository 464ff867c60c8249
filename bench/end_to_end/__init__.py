"""Whole networks in training: plain, converted to fastreg, compiled, and both."""

"""Triton kernels, one module an op; each is imported when its op first takes the Triton backend."""

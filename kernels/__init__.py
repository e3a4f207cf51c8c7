"""Triton kernels: torch and triton only, nothing of convein."""

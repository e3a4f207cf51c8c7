"""Triton kernels: torch and triton only, nothing of convein.

A file for each: the kernels, a launcher, the operator of torch that it becomes (`torch.ops.convein.*`, with gradients
of any order), `refusal`, which says for what the kernel is not, and the plain `reference` that it equals.
"""

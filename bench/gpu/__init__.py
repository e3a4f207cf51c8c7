"""What a GPU is measured by: its clock, factorised layers, the kernels, rates of torch's calls, training memory."""

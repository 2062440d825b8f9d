"""What the Triton kernels would do on a GPU, read off on a machine without one."""

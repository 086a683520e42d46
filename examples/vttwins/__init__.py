"""VT-TWINS on top of softdtw_kernels: see README.md in this folder for the launch lines."""

"""The asv suite: speed and memory of the kernels at the shapes that the comparison uses too."""

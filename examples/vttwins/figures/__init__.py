"""Figures 1 to 3 of the paper's supplement, from trained models; see __main__.py."""

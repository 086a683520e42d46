"""The paper's ablation (supplement, Table 3) at a size that a desk has; see __main__.py."""

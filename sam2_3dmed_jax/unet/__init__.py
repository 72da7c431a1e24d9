"""Residual 3D U-Net like nnU-Net's: the baseline that takes no prompts."""

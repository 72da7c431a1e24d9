"""A residual 3D U-Net of nnU-Net's kind: the native baseline that is no SAM and takes no prompts."""

"""SAM 2 and 2.1 in Flax NNX (Ravi et al. 2024, arXiv 2408.00714). It contains nothing specific to medicine."""

"""Server for interactive segmentation: a page for browsers, and the protocol of nnInteractive's viewers."""

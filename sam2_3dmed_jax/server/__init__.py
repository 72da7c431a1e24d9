"""Server for interactive segmentation: a page for browsers, and the protocols of nnInteractive and ITK-SNAP."""

"""Cached features of the frozen encoder: computed once, stored on disk, and read in place of slices."""

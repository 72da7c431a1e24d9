"""Synthetic CT and MR of the torso: random anatomy, a simulated scanner, and datasets in MSD layout."""

from sam2_3dmed_jax.phantom.dataset import make_case, write_phantom_dataset

__all__ = ["make_case", "write_phantom_dataset"]

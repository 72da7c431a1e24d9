"""Sweeps: checkpoints under many prompts and settings, without repeated encoding or compilation."""

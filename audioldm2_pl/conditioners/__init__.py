"""Condition encoders, one file each: what a prompt, a transcript or a sound tells GPT-2 and T-UNet."""

"""Condition encoders, one file each: what a prompt, a transcript or a sound says to GPT-2 and T-UNet."""

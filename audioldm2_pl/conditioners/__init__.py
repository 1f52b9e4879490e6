"""Condition encoders, one file each: prompts, transcripts or sound => conditions of GPT-2 and T-UNet."""

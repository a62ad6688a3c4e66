"""The stages of a run, one file each: tokenizer, codes, prior."""

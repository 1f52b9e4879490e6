"""Raw corpora into shards: `python -m data.<corpus> SOURCE OUTPUT`, one file a corpus."""

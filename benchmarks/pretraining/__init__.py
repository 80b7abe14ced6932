"""The course's own base model: corpus, tokenizer, training. `python -m benchmarks.pretraining`."""

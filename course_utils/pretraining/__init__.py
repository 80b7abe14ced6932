"""The course's own base model: facts, corpus, tokenizer, training. Introduced in notebook 06."""

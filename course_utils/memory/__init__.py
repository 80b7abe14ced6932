"""How much GPU memory a training takes, told without a GPU. Introduced in notebook 04."""

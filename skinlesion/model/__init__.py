"""Notebook 3: the network, its training, and prediction."""

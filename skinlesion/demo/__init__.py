"""Notebook 5: what is said about one image, and the page that shows it."""

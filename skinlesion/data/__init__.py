"""Notebooks 1 and 2: the dataset, its images, the split and its audit."""

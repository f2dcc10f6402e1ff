"""Where metrics go: CSV and Weights & Biases."""

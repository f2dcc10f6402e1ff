"""What a model can do, and how sure that is."""

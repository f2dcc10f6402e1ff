"""Questions -> prompt token ids."""

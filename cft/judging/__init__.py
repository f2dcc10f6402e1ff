"""How a response is judged: where its answer stands, whether it is the gold one, worker processes with a deadline."""

"""How much each eligible token counts: dynamic, from live log-probs."""

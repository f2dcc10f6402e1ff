"""Which response tokens carry loss: static, computed from stored rows."""

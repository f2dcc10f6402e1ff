"""Critical Token Fine-tuning (arXiv 2510.10974): annotate, train and evaluate on the tokens that decide an answer."""

__version__ = "0.1.0"

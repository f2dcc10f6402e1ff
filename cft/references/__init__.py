"""Reference models."""

from cft.references.models import AdapterOff, Annotation, Initial, NoReference, Reference, Score, Teacher

__all__ = [
    "AdapterOff",
    "Annotation",
    "Initial",
    "NoReference",
    "Reference",
    "Score",
    "Teacher",
]

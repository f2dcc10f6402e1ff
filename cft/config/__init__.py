"""Configuration: schemas, checks, building objects from it."""

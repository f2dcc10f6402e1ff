"""What makes a composed configuration: schemas, checks, building."""

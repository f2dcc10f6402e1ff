"""What a training resumes from."""

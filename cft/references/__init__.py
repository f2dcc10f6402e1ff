"""Models that the policy is compared with."""

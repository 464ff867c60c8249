"""Networks as users have them, small and at small batches: what converting one costs or gains."""

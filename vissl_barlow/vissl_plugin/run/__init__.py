"""A run's life: its folder's lock, its processes, the signals that stop it."""

"""A model as a service: files for systemd or containers, and a check of one that runs."""

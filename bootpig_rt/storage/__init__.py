"""Reference tables kept on the device, on the host and on disk."""

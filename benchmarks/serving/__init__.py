"""Services under load: an open-loop client, the load, the servers that are compared, and faults."""

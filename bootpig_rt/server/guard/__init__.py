"""What stands between the network and the service, and knows nothing of pictures."""

"""Pictures in and out, checked."""

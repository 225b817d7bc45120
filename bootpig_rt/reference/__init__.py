"""From reference images to a subject, and from a subject to its reference table."""

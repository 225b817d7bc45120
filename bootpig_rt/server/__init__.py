"""The HTTP service: OpenAI's images API, subjects, jobs, probes and a page, over an engine."""

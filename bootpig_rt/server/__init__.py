"""The HTTP service: OpenAI's images API, subjects, jobs, and what operating it takes."""

"""The OpenAPI file: what every route takes and answers, for programs."""

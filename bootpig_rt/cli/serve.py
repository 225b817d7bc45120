"""`bootpig-rt serve`: a pair or bundle as an HTTP service with a page."""

from __future__ import annotations

import argparse

from bootpig_rt.server.config import add_serve_arguments, options_of, to_toml

NAME = "serve"
HELP = "serve a pair over HTTP, with OpenAI's images API and a page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_serve_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    options = options_of(args)
    if args.print_config:
        print(to_toml(options), end="")
        return 0
    from bootpig_rt.server.logs import logs_to_stderr
    from bootpig_rt.server.run import serve_options

    def tell(address: str) -> None:
        # One write with its line end: log lines of other threads may go to the same pipe.
        print(f"bootpig-rt is ready at {address}\n", end="", flush=True)

    with logs_to_stderr(options.log_format, log_prompts=options.log_prompts):
        return serve_options(options, on_ready=tell)

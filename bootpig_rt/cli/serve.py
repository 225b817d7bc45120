"""`bootpig-rt serve`: a pair or bundle as an HTTP service with a page."""

from __future__ import annotations

import argparse

NAME = "serve"
HELP = "serve a pair over HTTP, with OpenAI's images API and a page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("model", nargs="?", metavar="FOLDER", help="pair or bundle to serve")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port (default: 8000)")
    parser.add_argument("--max-batch", type=int, default=8, help="pictures drawn at once")
    parser.add_argument("--max-waiting", type=int, default=64, help="pictures that may wait")


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from bootpig_rt.server.app import create_app
    from bootpig_rt.server.local import local_loaders, model_folders
    from bootpig_rt.server.metrics import Metrics
    from bootpig_rt.server.options import ServerOptions
    from bootpig_rt.server.output import Output
    from bootpig_rt.server.run import listen, serve
    from bootpig_rt.server.service import Service
    from bootpig_rt.server.stack import guarded

    options = ServerOptions(
        model=args.model,
        host=args.host,
        port=args.port,
        max_batch=args.max_batch,
        max_waiting=args.max_waiting,
    )
    metrics = Metrics(model_folders(options))
    service = Service(options, local_loaders(options, metrics), Output.of(options), metrics)
    listening = listen(options)
    address = f"http://{options.host}:{listening.getsockname()[1]}"
    return serve(
        service,
        guarded(create_app(service), options),
        listening,
        on_ready=lambda: print(f"bootpig-rt is ready at {address}", flush=True),
    )

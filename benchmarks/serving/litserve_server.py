"""LitServe with the published way, with its batching.

python -m bootpig_rt.benchmarks.serving.litserve_server FOLDER --port N --threads N --max-batch N
    --timeout S
"""

# No annotations of the future here: LitServe reads those of `decode_request`.
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve
import msgspec
from fastapi import HTTPException, Request

from bootpig_rt.benchmarks.serving.drawer import Body, Drawer, Drawn
from bootpig_rt.errors import ImageError

_BATCH_TIMEOUT_S = 0.02


class DrawingAPI(litserve.LitAPI):  # type: ignore[misc]  # it has no types
    """Requests that arrive together are drawn together, as far as their sizes and steps allow.

    Args:
        folder: Of the pair.
        threads: Of torch.
        max_batch: Requests that are drawn together.
    """

    def __init__(self, folder: Path, threads: int, max_batch: int) -> None:
        super().__init__(max_batch_size=max_batch, batch_timeout=_BATCH_TIMEOUT_S)
        self._folder, self._threads = folder, threads

    def setup(self, device: str) -> None:
        """Load the pair, in the process of the worker."""
        self._drawer = Drawer(self._folder, threads=self._threads, is_batched=True)

    def decode_request(self, request: Request) -> Body:
        """The body of one request, which LitServe has parsed already."""
        try:
            return msgspec.convert(request, Body)
        except msgspec.ValidationError as error:
            raise HTTPException(400, str(error)) from error

    def batch(self, inputs: Sequence[Body]) -> list[Body]:
        """As they are."""
        return list(inputs)

    def predict(self, x: list[Body]) -> list[Drawn]:
        """Pictures of a batch of requests."""
        try:
            return self._drawer.draw(x)
        except ImageError as error:
            raise HTTPException(400, str(error)) from error

    def unbatch(self, output: list[Drawn]) -> list[Drawn]:
        """As they are."""
        return output

    def encode_response(self, output: Drawn) -> dict[str, Any]:
        """The answer of one request."""
        return output.to_dict()


def main(words: list[str]) -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-batch", type=int, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    args = parser.parse_args(words)
    api = DrawingAPI(args.folder, args.threads, args.max_batch)
    server = litserve.LitServer(api, accelerator="cpu", timeout=args.timeout)
    server.run(
        host="127.0.0.1", port=args.port, log_level="warning", generate_client_file=False,
        num_api_servers=1,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])

"""From options to a service that listens, and its end: sockets, signals, draining.

The first SIGTERM or SIGINT lets running pictures end; the second one ends the process at once.
SIGHUP loads every model again. A process whose engine hangs, or has lost its device, ends by
itself: whoever supervises it starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from bootpig_rt.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    ParameterError,
    describe_os_error,
)
from bootpig_rt.server.app import create_app
from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.guard.connections import http_protocol
from bootpig_rt.server.guard.hosts import bind_check
from bootpig_rt.server.heap import keep_heap_small
from bootpig_rt.server.local import local_loaders, model_folders
from bootpig_rt.server.metrics import Metrics
from bootpig_rt.server.observe import Observer
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.output import Output
from bootpig_rt.server.service import Service
from bootpig_rt.server.stack import guarded

if TYPE_CHECKING:
    from bootpig_rt.server.tracing import Tracing

logger = logging.getLogger(__name__)

_MAX_HEADER_BYTES = 32 << 10
_HEADER_DEADLINE_S = 10.0
_STALL_S = 30.0
_BACKLOG = 2048
_WATCH_EVERY_S = 0.5
_LAST_WORDS_S = 2.0


def serve_options(
    options: ServerOptions, *, on_ready: Callable[[str], object] = lambda address: None
) -> int:
    """Run a service with models in this process until it is told to stop.

    Args:
        options: Of the whole of it.
        on_ready: Called with its address once it takes requests.

    Returns:
        The exit code.

    Raises:
        BootPIGError: An option or a model cannot be used.
    """
    keep_heap_small()
    metrics = Metrics(model_folders(options))
    service = Service(options, local_loaders(options, metrics), Output.of(options), metrics)
    tracing = _tracing() if options.traces else None
    app = guarded(
        create_app(service), options, observe=lambda within: Observer(within, metrics, tracing)
    )
    listening = listen(options)
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{listening.getsockname()[1]}"
    try:
        return serve(service, app, listening, on_ready=lambda: on_ready(address))
    finally:
        listening.close()
        if tracing is not None:
            tracing.close()


def listen(options: ServerOptions) -> socket.socket:
    """A socket on the address of the options; no one can connect to it yet.

    Raises:
        ParameterError: The port is in use, the address is not this machine's, or others could
            reach it and there are no keys.
    """
    bind_check(options.host, has_keys=options.keys is not None, insecure=options.insecure)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # With 0 in place of the protocol asyncio would not set TCP_NODELAY, and the second packet of an
    # answer would wait 40 ms for the client to acknowledge the first.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.port))
    except OSError as error:
        listening.close()
        where = f"{options.host}:{options.port}"
        if error.errno == errno.EADDRINUSE:
            raise ParameterError(
                f"port {options.port} is in use; choose another with --port, or 0 for a free one"
            ) from error
        raise ParameterError(f"cannot listen on {where}: {describe_os_error(error)}") from error
    return listening


def serve(
    service: Service,
    app: ASGIApp,
    listening: socket.socket,
    *,
    on_ready: Callable[[], object] = lambda: None,
) -> int:
    """Run until told to stop.

    Args:
        service: Behind the application; not started yet.
        app: The application with its guards.
        listening: As `listen` gives it.
        on_ready: Called once the service takes requests.

    Returns:
        The exit code.

    Raises:
        BootPIGError: A model cannot be used.
    """
    protocol = http_protocol(
        header_deadline_s=_HEADER_DEADLINE_S,
        stall_s=_STALL_S,
        max_connections=service.options.max_connections,
    )
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        backlog=_BACKLOG,
    )
    with asyncio.Runner() as runner:
        return runner.run(_run(service, _Server(config), listening, on_ready))


def _tracing() -> Tracing:
    from bootpig_rt.server.tracing import Tracing  # of an extra

    return Tracing()


class _Server(uvicorn.Server):
    """Whose signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(
    service: Service,
    server: _Server,
    listening: socket.socket,
    on_ready: Callable[[], object],
) -> int:
    told_to_stop = asyncio.Event()
    _on_signals(service, told_to_stop)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    starting = asyncio.create_task(service.start())
    stopping = asyncio.create_task(told_to_stop.wait())
    watching = asyncio.create_task(_watch(service))  # draining, too: that may hang as well
    try:
        await asyncio.wait({serving, starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            on_ready()
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        await service.drain()
        if not starting.done():
            await asyncio.wait({starting})  # a thread that loads cannot be interrupted
    finally:
        stopping.cancel()
        server.should_exit = True
        await serving
        await service.close()
        watching.cancel()
    return EXIT_OK


async def _watch(service: Service) -> None:
    """End the process once a model has failed for good."""
    while (fault := service.fault()) is None:
        await asyncio.sleep(_WATCH_EVERY_S)
    logger.critical("the service has failed, its process ends: %s", fault)
    service.fail()
    ends = time.monotonic() + _LAST_WORDS_S
    while service.jobs.live() and time.monotonic() < ends:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)  # what was told goes out
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(EXIT_FAILURE)  # a thread that hangs cannot be ended


def _on_signals(service: Service, told_to_stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if told_to_stop.is_set():
            logger.warning("told to stop again: ending at once")
            os._exit(EXIT_INTERRUPTED)
        logger.info("told to stop: running pictures may end, %g s at most", service.options.drain_s)
        told_to_stop.set()

    def reload() -> None:
        task = loop.create_task(_reload_all(service))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    tasks: set[asyncio.Task[None]] = set()  # the loop alone would forget them
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    loop.add_signal_handler(signal.SIGHUP, reload)


async def _reload_all(service: Service) -> None:
    for name in list(service.clients):
        with contextlib.suppress(ApiError):  # logged, and the old one goes on
            await service.reload(name)

"""Every setting of the service, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from bootpig_rt.checks import check_int, check_name
from bootpig_rt.errors import ParameterError, shown

LogFormat: TypeAlias = Literal["auto", "json", "text"]
DecoderName: TypeAlias = Literal["full", "tiny"]

DEFAULT_MODEL = "bootpig-small"
FEW_STEP_MODEL = "bootpig-small-turbo"


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a service runs.

    Attributes:
        model: Folder of the pair or bundle that is drawn with unless a request names another; the
            pair inside the package by default.
        models: Further ones, by the name that requests use.
        backend: `auto`, `onnxruntime`, `openvino`, `tensorrt` or `torch`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        base_model: Stable Diffusion folder, for pairs that hold the two U-Nets alone.
        trust: Ed25519 public key, PEM: only bundles signed with its private key are loaded.
        threads: Of ONNX Runtime or OpenVINO; one for each core by default.
        precision: Of OpenVINO, `auto`, `float32`, `bfloat16` or `int8`; of torch likewise.
        decoder: Of latents to pictures: `full`, or `tiny` where the pair has a tiny autoencoder.
        lora: LoRA files, FILE or FILE:SCALE, fused into the weights of `model`, which torch then
            runs; those of `models` stay as they are.
        control: ControlNets, KIND=DIR, beside those that lie in the folder of `model`, which torch
            then runs; those of `models` have their own.
        remove_background: `grabcut` or an ONNX file: cuts subjects out of references.
        warmup_batches: Batch sizes that are drawn before the service is ready.
        host: Address to listen on. Another than loopback needs keys, or `insecure`.
        port: To listen on; 0 picks a free one.
        insecure: Listen on any address without keys.
        keys: File of API keys, see `bootpig-rt keys`.
        allowed_hosts: Host names that requests may name, beside loopback.
        allowed_origins: Origins of pages that may call, beside the service's own.
        public_metrics: `/metrics` needs no key.
        page: Serve the page at `/`.
        max_batch: Pictures drawn at once.
        max_waiting: Pictures that may wait to begin; more are refused with 429.
        max_images: Pictures of one request.
        max_steps: Steps of a picture.
        max_side_px: Width and height of a picture.
        max_references: Reference images of a subject; also bounded by the pair.
        max_table_bytes: Of the reference table of a request.
        max_image_pixels: Of an uploaded image.
        max_body_bytes: Of an upload.
        body_timeout_s: In which a body must have arrived, however it drips.
        max_uploads: Bodies that are read at once.
        max_connections: That are open at once. The one that has been idle longest gives way; where
            none is, a new one gets 503, but for probes.
        default_deadline_s: In which a picture must be done, unless the request says otherwise.
        max_deadline_s: The longest that a request may say.
        tenant_max_waiting: Pictures of one tenant that may wait or run.
        tenant_max_uploads: Bodies of one tenant with keys that are read at once.
        tenant_subject_bytes: Host memory for the subjects of one tenant.
        subject_ttl_s: How long a subject is kept after its last use, unless its maker says.
        subject_folder: Keeps subjects over restarts; None keeps them in memory alone.
        store: Folder for reference tables.
        device_table_bytes: Device memory for tables that are kept between requests.
        drain_s: Time for running pictures when the service is told to stop.
        hang_s: A step, or a launch of a reference pass, that takes longer is a hang: the process
            says that it is not alive and ends, to be started again.
        blocklist: File of words and phrases that no prompt may have.
        safety_model: ONNX file of open_nsfw, or `open_nsfw` for that of the extra `safety`; a
            flagged picture is not given out.
        safety_threshold: Score from which a picture is flagged.
        credentials_certificate: Certificate chain, PEM, for C2PA manifests.
        credentials_key: Its private key, PEM.
        credentials_required: A picture that cannot be signed is not given out.
        omit_prompts: Prompts are not written into the files of pictures.
        log_format: `json`, `text`, or `auto`: text on a terminal.
        log_prompts: Prompts appear in logs.
        contact: Mail address or address of a page, to which the page sends reports of pictures.
        traces: Send OpenTelemetry traces, by the variables OTEL_*.

    Raises:
        ParameterError: A value is unknown or out of range.
    """

    model: str | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    backend: str = "auto"
    device: str = "auto"
    base_model: str | None = None
    trust: str | None = None
    threads: int | None = None
    precision: str | None = None
    decoder: DecoderName = "full"
    lora: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    remove_background: str | None = None
    warmup_batches: tuple[int, ...] = (1,)

    host: str = "127.0.0.1"
    port: int = 8000
    insecure: bool = False
    keys: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    public_metrics: bool = False
    page: bool = True

    max_batch: int = 8
    max_waiting: int = 64
    max_images: int = 10
    max_steps: int = 200
    max_side_px: int = 2048
    max_references: int = 16
    max_table_bytes: int | None = None
    max_image_pixels: int = 16 << 20
    max_body_bytes: int = 32 << 20
    body_timeout_s: float = 30.0
    max_uploads: int = 16
    max_connections: int = 512
    default_deadline_s: float | None = 120.0
    max_deadline_s: float = 600.0

    tenant_max_waiting: int | None = None
    tenant_max_uploads: int | None = None
    tenant_subject_bytes: int = 256 << 20
    subject_ttl_s: float = 86400.0
    subject_folder: str | None = None
    store: str | None = None
    device_table_bytes: int = 1 << 30

    drain_s: float = 30.0
    hang_s: float = 300.0
    blocklist: str | None = None
    safety_model: str | None = None
    safety_threshold: float = 0.8
    credentials_certificate: str | None = None
    credentials_key: str | None = None
    credentials_required: bool = False
    omit_prompts: bool = False
    log_format: LogFormat = "auto"
    log_prompts: bool = False
    contact: str | None = None
    traces: bool = False

    @property
    def most_images(self) -> int:
        """Pictures that one request may ask for: no more than can ever wait."""
        return min(self.max_images, self.max_waiting)

    def __post_init__(self) -> None:
        """Check every number and name."""
        for name, low, high in (
            ("port", 0, 65535),
            ("max_batch", 1, 1024),
            ("max_waiting", 1, 1 << 20),
            ("max_images", 1, 64),
            ("max_steps", 1, 1000),
            ("max_side_px", 8, 4096),
            ("max_references", 1, 64),
            ("max_image_pixels", 64, 1 << 28),
            ("max_body_bytes", 1024, 1 << 32),
            ("max_uploads", 1, 4096),
            ("max_connections", 1, 1 << 20),
            ("tenant_subject_bytes", 0, 1 << 50),
            ("device_table_bytes", 0, 1 << 50),
        ):
            check_int(name, getattr(self, name), low, high)
        for name in ("threads", "max_table_bytes", "tenant_max_waiting", "tenant_max_uploads"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1, 1 << 50)
        for name in ("body_timeout_s", "max_deadline_s", "subject_ttl_s", "drain_s", "hang_s"):
            _check_seconds(name, getattr(self, name))
        if self.default_deadline_s is not None:
            _check_seconds("default_deadline_s", self.default_deadline_s)
        for size in self.warmup_batches:
            check_int("warmup_batches", size, 1, self.max_batch, "raise max_batch for more")
        check_name("log_format", self.log_format, get_args(LogFormat))
        check_name("decoder", self.decoder, get_args(DecoderName))
        if (self.credentials_certificate is None) != (self.credentials_key is None):
            raise ParameterError(
                "got one of credentials_certificate and credentials_key, expected both or none"
            )
        if self.credentials_required and self.credentials_certificate is None:
            raise ParameterError(
                "credentials_required needs credentials_certificate and credentials_key"
            )


def _check_seconds(name: str, value: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 10**8:
        raise ParameterError(f"{name} is {shown(value)}, expected seconds in 0..1e8")

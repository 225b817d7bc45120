"""Output: between callers and the model. Prompts on the way in, pictures on the way out.

Every picture that leaves was judged, if there is a checker, is marked as generated, and is signed
if there are credentials. What of this fails keeps the picture back.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from bootpig_rt.images.content_credentials import ContentCredentials
from bootpig_rt.images.credentials_manifest import ReferenceOrigin
from bootpig_rt.images.encode_image import ImageFormat, encode_image
from bootpig_rt.images.marks import without_prompts
from bootpig_rt.server.blocklist import Blocklist
from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.nsfw import OpenNsfw
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.safety import Checked, SafetyChecker, apply_safety

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """A picture as it leaves.

    Attributes:
        b64_json: Its file, in base64.
        is_flagged: It is a plain grey one in place of what the checker flagged; None if there is
            no checker.
    """

    b64_json: str
    is_flagged: bool | None


@dataclass(frozen=True)
class Output:
    """Judges and encodes pictures. Takes milliseconds a picture: call it on a thread.

    Attributes:
        blocklist: What no prompt may have.
        checker: None judges nothing.
        credentials: None signs nothing.
        omits_prompts: Files hold no prompts.
    """

    blocklist: Blocklist = field(default_factory=Blocklist)
    checker: SafetyChecker | None = None
    credentials: ContentCredentials | None = None
    omits_prompts: bool = False

    @classmethod
    def of(cls, options: ServerOptions) -> Output:
        """What the options of a service ask for.

        Raises:
            BackendUnavailable: A package is missing.
            CheckpointError: The file of the checker cannot be used.
            ConfigError: The blocklist cannot be read.
            CredentialsError: Pictures must be signed, and cannot be.
            ParameterError: Its threshold is out of range.
        """
        blocklist = Blocklist()
        if options.blocklist is not None:
            blocklist = Blocklist.load(options.blocklist)
        checker = None
        if options.safety_model is not None:
            checker = OpenNsfw(options.safety_model, threshold=options.safety_threshold)
        credentials = None
        if options.credentials_certificate is not None and options.credentials_key is not None:
            credentials = ContentCredentials.load(
                options.credentials_certificate,
                options.credentials_key,
                is_required=options.credentials_required,
            )
        return cls(blocklist, checker, credentials, options.omit_prompts)

    def origins(self, references: Sequence[bytes]) -> tuple[ReferenceOrigin, ...]:
        """What manifests will say of reference images; nothing if pictures are not signed.

        Args:
            references: Contents of their files, as they were sent.
        """
        if self.credentials is None:
            return ()
        return tuple(map(self.credentials.origin, references))

    def check_prompts(self, prompts: Mapping[str, str | None]) -> None:
        """Refuse what must not be asked for. The negative prompt too: low scales draw that.

        Args:
            prompts: By the names of their fields.

        Raises:
            ApiError: 400 `content_policy`, without the word at fault.
        """
        for name, prompt in prompts.items():
            line = None if prompt is None else self.blocklist.find(prompt)
            if line is not None:
                logger.info("a %s was refused by line %d of the blocklist", name, line)
                text = "this server does not draw what the prompt asks for"
                raise ApiError(400, "content_policy", text, param=name)

    def finish(
        self,
        images: Sequence[Image.Image],
        parameters: Sequence[Mapping[str, Any]],
        *,
        format: ImageFormat,
        compression: int | None,
        origins: Sequence[ReferenceOrigin] = (),
    ) -> list[Finished]:
        """Finished pictures as files.

        Args:
            images: RGB.
            parameters: What each was made from, kept in its file.
            format: Of the files.
            compression: Quality of JPEG and WebP, 0 to 100.
            origins: Of the reference images, as `origins` gave them.

        Raises:
            ApiError: 500: they could not be judged.
            CredentialsError: They must be signed, and cannot be.
        """
        checked = apply_safety(self.checker, images)
        return [
            Finished(self._base64(one, format, compression, made_from, origins), one.is_flagged)
            for one, made_from in zip(checked, parameters, strict=True)
        ]

    def encode(
        self, images: Sequence[Image.Image], *, format: ImageFormat, compression: int | None
    ) -> list[str]:
        """Pictures that are not finished, as base64 of their files: judged and signed as well.

        Raises:
            ApiError, CredentialsError: As `finish`.
        """
        checked = apply_safety(self.checker, images)
        return [self._base64(one, format, compression, None, ()) for one in checked]

    def _base64(
        self,
        checked: Checked,
        format: ImageFormat,
        compression: int | None,
        parameters: Mapping[str, Any] | None,
        origins: Sequence[ReferenceOrigin],
    ) -> str:
        # What stands in for a flagged picture was made by no model, and from nothing.
        is_generated = not checked.is_flagged
        if parameters is not None and self.omits_prompts:
            parameters = without_prompts(parameters)
        data = encode_image(
            checked.image,
            format=format,
            compression=None if format == "png" else compression,
            parameters=parameters if is_generated else None,
            is_generated=is_generated,
            credentials=self.credentials,
            references=origins,
        )
        return base64.b64encode(data).decode()

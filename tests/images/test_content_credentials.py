"""Signed manifests: read back by c2pa itself, kept from references, refused when they cannot be."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import logging
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bootpig_rt.errors import CredentialsError
from bootpig_rt.images.content_credentials import ContentCredentials, read_credentials
from bootpig_rt.images.credentials_manifest import GENERATION_LABEL, ReferenceOrigin
from bootpig_rt.images.credentials_report import report_of
from bootpig_rt.images.encode_image import MEDIA_TYPES, ImageFormat, encode_image
from bootpig_rt.images.marks import GENERATED
from bootpig_rt.images.picture import is_marked_generated, load_image, read_parameters, save_png

c2pa: Any = pytest.importorskip("c2pa", reason="the extra `provenance` is not installed")

Make = Callable[..., tuple[Path, Path, Path]]
PARAMETERS = {
    "prompt": "a SECRET dog",
    "seed": 1,
    "model": "small",
    "model_fingerprint": "f" * 64,
    "subject_fingerprint": "5" * 64,
}
FORMATS = tuple(MEDIA_TYPES)


@pytest.fixture(scope="module")
def files(make_certificates: Make) -> tuple[Path, Path, Path]:
    return make_certificates()


@pytest.fixture(scope="module")
def credentials(files: tuple[Path, Path, Path]) -> ContentCredentials:
    loaded = ContentCredentials.load(*files[:2], is_required=True)
    assert loaded is not None
    return loaded


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.effect_mandelbrot((48, 32), (-2, -1, 1, 1), 50).convert("RGB")


@pytest.fixture(scope="module")
def signed_reference(make_certificates: Make, picture: Image.Image) -> bytes:
    """A JPEG that somebody else signed."""
    others = ContentCredentials.load(*make_certificates("Ann Other")[:2], is_required=True)
    return encode_image(picture, format="jpeg", credentials=others)


def oracle(data: bytes, media_type: str, root: Path | None = None) -> Any:
    """What c2pa's own reader says, without our code."""
    settings: dict[str, Any] = {"version": 1, "verify": {"remote_manifest_fetch": False}}
    if root is not None:
        settings["trust"] = {"trust_anchors": root.read_text()}
    with c2pa.Context.from_dict(settings) as context:
        return json.loads(c2pa.Reader(media_type, io.BytesIO(data), None, context).json())


@pytest.mark.parametrize("format", FORMATS)
def test_the_reader_of_c2pa_verifies_every_format(
    format: ImageFormat,
    credentials: ContentCredentials,
    files: tuple[Path, Path, Path],
    picture: Image.Image,
) -> None:
    reference = credentials.origin(b"any file")
    signed = encode_image(
        picture,
        format=format,
        parameters=PARAMETERS,
        credentials=credentials,
        references=[reference],
    )
    store = oracle(signed, MEDIA_TYPES[format], files[2])
    assert store["validation_state"] == "Trusted"
    manifest = store["manifests"][store["active_manifest"]]
    assert manifest["signature_info"]["common_name"] == "Test Signer"
    data = {each["label"]: each["data"] for each in manifest["assertions"]}
    [created] = data["c2pa.actions.v2"]["actions"]
    assert created["action"] == "c2pa.created"
    assert created["digitalSourceType"] == GENERATED
    assert created["softwareAgent"]["name"] == "bootpig-rt"
    assert data[GENERATION_LABEL] == {
        "models": [{"name": "small", "fingerprint": "f" * 64}],
        "subjects": ["5" * 64],
        "references": [{"alg": "sha256", "hash": hashlib.sha256(b"any file").hexdigest()}],
    }
    assert "SECRET" not in json.dumps(store)
    assert read_parameters(signed) == PARAMETERS
    assert is_marked_generated(signed)
    assert (
        load_image(signed).tobytes() == load_image(encode_image(picture, format=format)).tobytes()
    )


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_that_was_changed_is_found_out(
    format: ImageFormat, credentials: ContentCredentials, picture: Image.Image
) -> None:
    signed = bytearray(encode_image(picture, format=format, credentials=credentials))
    signed[-40] ^= 1  # of the picture's data, or of the XMP behind it
    assert oracle(bytes(signed), MEDIA_TYPES[format])["validation_state"] == "Invalid"
    report = read_credentials(bytes(signed))
    assert report is not None
    assert report.state == "Invalid"


def test_a_manifest_in_a_reference_is_kept_as_an_ingredient(
    credentials: ContentCredentials, picture: Image.Image, signed_reference: bytes
) -> None:
    origins = [credentials.origin(one) for one in (signed_reference, signed_reference, b"plain")]
    assert [origin.archive is not None for origin in origins] == [True, True, False]
    signed = encode_image(picture, credentials=credentials, references=origins)
    store = oracle(signed, "image/png")
    assert store["validation_state"] == "Valid"
    manifest = store["manifests"][store["active_manifest"]]
    [ingredient] = manifest["ingredients"]
    assert ingredient["relationship"] == "inputTo"
    inside = store["manifests"][ingredient["active_manifest"]]
    assert inside["signature_info"]["common_name"] == "Ann Other"
    assert (
        oracle(signed_reference, "image/jpeg")["active_manifest"] == ingredient["active_manifest"]
    )
    [created] = manifest["assertions"][0]["data"]["actions"]
    assert len(created["parameters"]["ingredients"]) == 1
    report = read_credentials(signed)
    assert report is not None
    assert report.ingredients == {ingredient["active_manifest"]: "inputTo"}
    assert len(report.generation["references"]) == 3


def test_a_broken_manifest_in_a_reference_stops_no_picture(
    credentials: ContentCredentials, picture: Image.Image, signed_reference: bytes
) -> None:
    at = signed_reference.index(b"c2pa.created")
    broken = signed_reference[:at] + b"X" + signed_reference[at + 1 :]
    cut = signed_reference[: at + 30]
    origins = [credentials.origin(one) for one in (broken, cut, b"", b"\x89PNG\r\n\x1a\n")]
    signed = encode_image(picture, credentials=credentials, references=origins)
    store = oracle(signed, "image/png")
    assert store["validation_state"] == "Valid"
    [ingredient] = store["manifests"][store["active_manifest"]]["ingredients"]
    assert ingredient["validation_results"]["activeManifest"]["failure"]


@pytest.fixture
def address() -> Iterator[tuple[str, list[str]]]:
    """A server's address, and the paths that were asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/manifest.c2pa", asked
        server.shutdown()
        thread.join()


def test_an_address_in_a_reference_is_not_fetched(
    credentials: ContentCredentials, address: tuple[str, list[str]]
) -> None:
    url, asked = address
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="{url}"/></rdf:RDF>'
        "</x:xmpmeta>"
    )
    contents = b"http://ns.adobe.com/xap/1.0/\0" + xmp.encode()
    stream = io.BytesIO()
    segment = b"\xff\xe1" + struct.pack(">H", len(contents) + 2) + contents
    Image.new("RGB", (8, 8)).save(stream, "JPEG", extra=segment)
    with pytest.raises(c2pa.C2paError, match="Remote"):  # c2pa itself would
        c2pa.Reader("image/jpeg", io.BytesIO(stream.getvalue()))
    assert asked == ["/manifest.c2pa"]
    origin = credentials.origin(stream.getvalue())
    assert origin == ReferenceOrigin(hashlib.sha256(stream.getvalue()).hexdigest())
    assert read_credentials(stream.getvalue()) is None
    assert asked == ["/manifest.c2pa"]


@pytest.mark.parametrize("kind", ["p384", "p521", "rsa", "ed25519"])
def test_keys_of_every_kind_sign(kind: str, make_certificates: Make, picture: Image.Image) -> None:
    credentials = ContentCredentials.load(*make_certificates(kind=kind)[:2], is_required=True)
    store = oracle(encode_image(picture, credentials=credentials), "image/png")
    assert store["validation_state"] == "Valid"


def spoil(make: Make, how: str) -> tuple[Path, Path]:
    """Certificate and key with one thing wrong."""
    if how == "expired":
        return make(days=(-9, -1))[:2]
    if how == "early":
        return make(days=(1, 9))[:2]
    if how == "web":
        return make(usage="web")[:2]
    if how == "k256":
        return make(kind="k256")[:2]
    chain, key, root = make()
    if how == "no certificate":
        chain.unlink()
    elif how == "no key":
        key.unlink()
    elif how == "swapped":
        chain, key = key, chain
    elif how == "other key":
        key = make()[1]
    elif how == "no chain":
        chain = root
    elif how == "damaged key":
        key.write_bytes(key.read_bytes()[:80])
    return chain, key


FAULTS = {
    "expired": "expired on 2.*; renew it",
    "early": "is not valid before 2.*; check the clock",
    "web": "c2pa cannot sign with .*extended key usage emailProtection",
    "k256": "is of kind secp256k1, expected P-256",
    "no certificate": "cannot read the certificate .*no such file.*check the path",
    "no key": "cannot read the key .*no such file.*check the path",
    "swapped": "holds no certificate in PEM form",
    "other key": "is not that of the first certificate in",
    "no chain": "is not that of the first certificate in",
    "damaged key": "is no private key in PEM form without a passphrase",
}


@pytest.mark.parametrize("how", FAULTS)
def test_what_cannot_sign_is_refused_at_once_when_it_is_required(
    how: str, make_certificates: Make, caplog: pytest.LogCaptureFixture
) -> None:
    files = spoil(make_certificates, how)
    with pytest.raises(CredentialsError, match=FAULTS[how]) as caught:
        ContentCredentials.load(*files, is_required=True)
    assert "\n" not in str(caught.value)
    assert "PRIVATE" not in str(caught.value)
    with caplog.at_level(logging.WARNING, "bootpig_rt"):
        assert ContentCredentials.load(*files, is_required=False) is None
    assert f"pictures will not be signed: {caught.value}" in caplog.text


def expired(credentials: ContentCredentials, *, is_required: bool) -> ContentCredentials:
    """The same after its end came."""
    files = replace(credentials.files, ends=datetime.now(UTC) - timedelta(seconds=1))
    return replace(credentials, files=files, is_required=is_required)


def test_a_certificate_that_ends_while_it_is_in_use_withholds_pictures(
    credentials: ContentCredentials, picture: Image.Image, tmp_path: Path
) -> None:
    late = expired(credentials, is_required=True)
    with pytest.raises(CredentialsError, match="expired on"):
        encode_image(picture, credentials=late)
    with pytest.raises(CredentialsError, match="expired on"):
        save_png(picture, tmp_path / "a.png", credentials=late)
    assert list(tmp_path.iterdir()) == []


def test_pictures_go_out_unsigned_where_that_is_allowed(
    credentials: ContentCredentials, picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    late = expired(credentials, is_required=False)
    with caplog.at_level(logging.WARNING, "bootpig_rt"):
        encoded = encode_image(picture, credentials=late)
    assert "a picture is not signed: the certificate" in caplog.text
    assert encoded == encode_image(picture)
    assert read_credentials(encoded) is None
    assert is_marked_generated(encoded)


def test_a_signature_that_fails_leaves_no_picture(
    credentials: ContentCredentials, picture: Image.Image
) -> None:
    """c2pa finds a broken signature after it has written the picture."""
    other = ReferenceOrigin("0" * 64, archive=b"no archive")
    with pytest.raises(CredentialsError, match="c2pa cannot sign"):
        encode_image(picture, credentials=credentials, references=[other])


def test_a_picture_that_no_model_made_is_not_signed(
    credentials: ContentCredentials, picture: Image.Image
) -> None:
    encoded = encode_image(picture, is_generated=False, credentials=credentials)
    assert read_credentials(encoded) is None


def test_threads_share_credentials(credentials: ContentCredentials, picture: Image.Image) -> None:
    with ThreadPoolExecutor(4) as pool:
        signed = list(pool.map(lambda _: encode_image(picture, credentials=credentials), range(16)))
    assert len(set(signed)) == 16
    assert {oracle(one, "image/png")["validation_state"] for one in signed} == {"Valid"}


def test_secrets_are_not_shown(credentials: ContentCredentials) -> None:
    assert "PRIVATE" not in repr(credentials)
    assert "BEGIN" not in repr(credentials)


@pytest.mark.parametrize(
    "store",
    [
        None,
        [],
        {"active_manifest": "a", "manifests": {}},
        {"active_manifest": ["a"], "manifests": {"a": {}}},
        {"active_manifest": "a", "manifests": {"a": {"assertions": 3, "ingredients": ["x"]}}},
        {
            "active_manifest": "a",
            "manifests": {
                "a": {
                    "assertions": [{"label": "c2pa.actions", "data": {"actions": {}}}, {}, 1],
                    "signature_info": "x",
                }
            },
        },
    ],
)
def test_a_report_of_anything_is_a_report(store: Any) -> None:
    report = report_of(store)
    assert report.state == "Invalid"
    assert (report.signer, report.source_types, report.ingredients) == ("", (), {})

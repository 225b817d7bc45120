"""A bundle: the folder that `bootpig-rt build-engine` makes and a runtime loads.

The one reader and writer of `manifest.json`. An engine is executable code, so `open_bundle` checks
the signature, every path, every size and every sha256 before anyone loads anything. What the
fields mean is in `manifest.py`, the files are compared in `files.py`, signatures are in
`signing.py`.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
from packaging.version import InvalidVersion, Version

from bootpig_rt.bundle.files import (
    MANIFEST,
    REBUILD,
    SIGNATURE,
    check_files,
    check_paths,
    list_files,
    measure,
    read_small,
)
from bootpig_rt.bundle.manifest import (
    FORMAT,
    FileInfo,
    GraphInfo,
    Identity,
    Manifest,
    ParityReport,
    ParityResult,
    Profile,
    RuntimeInfo,
    TensorInfo,
    Variant,
    VariantPrecision,
)
from bootpig_rt.bundle.signing import check_signature, sign
from bootpig_rt.errors import BundleError, describe_os_error, one_line, shown
from bootpig_rt.files.atomic import atomic_write_bytes

__all__ = [
    "Bundle",
    "FileInfo",
    "GraphInfo",
    "Identity",
    "Manifest",
    "ParityReport",
    "ParityResult",
    "Profile",
    "RuntimeInfo",
    "TensorInfo",
    "Variant",
    "is_bundle",
    "list_files",
    "open_bundle",
    "read_manifest",
    "record_identity",
    "record_parity",
    "write_manifest",
]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were all checked.

    Attributes:
        folder: Where it lies.
        manifest: What it says about itself.
        is_trusted: It was signed with a key that somebody said to trust.
    """

    folder: Path
    manifest: Manifest
    is_trusted: bool = False

    def graph(self, name: str) -> GraphInfo:
        """The entry of a graph or engine.

        Raises:
            BundleError: The bundle has none of that name.
        """
        for graph in self.manifest.graphs:
            if graph.name == name:
                return graph
        names = ", ".join(graph.name for graph in self.manifest.graphs)
        raise BundleError(f"{self.folder} has no graph {name!r}, only {names}; {REBUILD}")

    def graph_in(self, name: str, precision: str) -> GraphInfo:
        """The entry of a graph that computes in a precision: a variant's own, or the bundle's.

        Raises:
            BundleError: The bundle has none of that name.
        """
        variant = self.manifest.variant(precision)
        found = () if variant is None else variant.graphs
        return next((graph for graph in found if graph.name == name), None) or self.graph(name)

    def check_unchanged(self, graph: GraphInfo) -> None:
        """Hash a graph's file once more, and the weights beside it that are its own.

        Raises:
            BundleError: One of them has changed since the bundle was opened.
        """
        own = Path(graph.file).with_suffix(".bin").as_posix()
        for file in self.manifest.files:
            if file.path not in (graph.file, own):
                continue
            path = self.folder / file.path
            try:
                sha256 = measure(path)[1]
            except OSError as error:
                raise BundleError(
                    f"cannot read {path}: {describe_os_error(error)}", path
                ) from error
            if sha256 != file.sha256:
                raise BundleError(f"{path} has changed since it was checked; {REBUILD}", path)

    def graph_path(self, name: str) -> Path:
        """The file of a graph or engine.

        Raises:
            BundleError: The bundle has none of that name.
        """
        return self.folder / self.graph(name).file

    def read_graph(self, name: str) -> bytes:
        """The bytes of a graph or engine, hashed once more as they are returned.

        What is deserialized from these bytes is what was checked, even if the file is replaced
        after the bundle was opened.

        Raises:
            BundleError: The bundle has none of that name, or the file has changed.
        """
        graph = self.graph(name)
        path = self.folder / graph.file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"cannot read {path}: {describe_os_error(error)}", path) from error
        if hashlib.sha256(data).hexdigest() != graph.sha256:
            raise BundleError(f"{path} has changed since it was checked; {REBUILD}", path)
        return data

    def check_runtime(self, name: str, version: str, architecture: str | None = None) -> None:
        """Refuse a runtime that this bundle was not built for.

        Args:
            name: Of the runtime that is about to load it: `onnxruntime`, `tensorrt_rtx`, ...
            version: Of that runtime.
            architecture: Of the device, `sm_89`; None where there is none to compare.

        Raises:
            BundleError: Another runtime, another version, an older version or another architecture.
        """
        wanted, target = self.manifest.runtime, self.manifest.target
        if name != wanted.name:
            raise BundleError(
                f"{self.folder} was built for {wanted.name} (target {target}), this is {name}; "
                "choose the backend that fits, or build again for another --target",
                self.folder,
            )
        if wanted.minimum_version is None and version != wanted.version:
            raise BundleError(
                f"{self.folder} was built with {name} {wanted.version}, installed is {version}, "
                "and its engines run with the same version only; pip install "
                f"'{name.replace('_', '-')}=={wanted.version}', or build again with "
                f"--target {target}",
                self.folder,
            )
        minimum = wanted.minimum_version
        if minimum is not None and _is_older(version, minimum):
            raise BundleError(
                f"{self.folder} needs {name} {minimum} or newer, installed is {version}; "
                f"pip install --upgrade {name.replace('_', '-')}",
                self.folder,
            )
        if wanted.architecture not in (None, architecture) and architecture is not None:
            fix = f"with --target {architecture}"
            if target == "local":
                fix = "on this machine with --target local"
            raise BundleError(
                f"{self.folder} was built for {wanted.architecture}, this device is "
                f"{architecture}; build again {fix}",
                self.folder,
            )


def is_bundle(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder says that it is a bundle: it has a manifest, good or bad."""
    return os.path.lexists(Path(folder) / MANIFEST)


def open_bundle(
    folder: str | os.PathLike[str], *, trust: str | os.PathLike[str] | None = None
) -> Bundle:
    """Check a bundle, all of it, before anything in it is loaded.

    Args:
        folder: The bundle.
        trust: Public key, PEM; the manifest must be signed with the private key that belongs to it.

    Raises:
        BundleError: No manifest, one of a newer format or not valid; a file that is missing, added,
            changed, a symbolic link or outside the folder; no signature or another key's.
        BackendUnavailable: `trust` is given and the package `cryptography` is not installed.
        ParameterError: `trust` is no Ed25519 public key.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, trust=trust)
    check_paths(folder, manifest)
    check_files(folder, manifest)
    return Bundle(folder, manifest, is_trusted=trust is not None)


def read_manifest(
    folder: str | os.PathLike[str], *, trust: str | os.PathLike[str] | None = None
) -> Manifest:
    """Read and check `manifest.json` alone, and its signature where one is demanded.

    Nothing in the folder may be loaded on the strength of this; that takes `open_bundle`.

    Raises:
        BundleError, BackendUnavailable, ParameterError: As for `open_bundle`.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    text = read_small(path)
    if trust is not None:
        signature = folder / SIGNATURE
        if not os.path.lexists(signature):
            raise BundleError(
                f"{folder} is not signed: it has no {SIGNATURE}, and a key to trust was given; "
                "build it with --sign KEY, or get it from its maker",
                signature,
            )
        check_signature(text, read_small(signature), Path(trust), what=str(folder))
    try:
        values = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = one_line(str(error))
        raise BundleError(f"{path} is not valid json ({what}); {REBUILD}", path) from error
    version = values.get("format") if isinstance(values, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise BundleError(
            f"{path} is of format {shown(version)}, expected at most {FORMAT}: it was built by a "
            "newer bootpig-rt; pip install --upgrade bootpig-rt, or build it again with this one",
            path,
        )
    try:
        return Manifest.from_dict(values)
    except msgspec.ValidationError as error:
        raise BundleError(f"{path}: {one_line(str(error))}; {REBUILD}", path) from error


def write_manifest(
    folder: str | os.PathLike[str],
    manifest: Manifest,
    *,
    key: str | os.PathLike[str] | None = None,
) -> Bundle:
    """Write the manifest: the last step of a build, after which the folder is a bundle.

    Args:
        folder: Holds all the files that the manifest lists.
        manifest: What to write.
        key: Private key, PEM, to sign with. Without one an older signature is removed.

    Raises:
        BundleError: The manifest does not describe the folder.
        BackendUnavailable: A key is given and the package `cryptography` is not installed.
        ParameterError: The key is no Ed25519 private key.
        StorageError: The disk is full, read-only or otherwise refuses.
    """
    folder = Path(folder)
    try:
        data = manifest.to_json().encode()
    except msgspec.ValidationError as error:
        raise BundleError(f"the manifest of {folder} is wrong: {error}", folder) from error
    check_paths(folder, manifest)
    signature = None if key is None else sign(data, Path(key))
    # The signature first: a manifest alone is what makes the folder a bundle.
    (folder / MANIFEST).unlink(missing_ok=True)
    if signature is None:
        (folder / SIGNATURE).unlink(missing_ok=True)
    else:
        atomic_write_bytes(folder / SIGNATURE, signature)
    atomic_write_bytes(folder / MANIFEST, data)
    return Bundle(folder, manifest)


def record_parity(
    bundle: Bundle,
    report: ParityReport,
    *,
    variant: VariantPrecision | None = None,
    key: str | os.PathLike[str] | None = None,
) -> Bundle:
    """Put the result of a parity gate that was run later into the manifest.

    Args:
        bundle: Whose.
        report: The result.
        variant: Another precision that it is of; None: that of the bundle itself.
        key: Private key, PEM, to sign the new manifest with.

    Raises:
        BundleError: The bundle is signed and no key was given to sign it again.
        StorageError: The folder cannot be written to.
    """
    _check_may_change(bundle, key)
    manifest = bundle.manifest
    if variant is None:
        manifest = msgspec.structs.replace(manifest, parity=report)
    else:
        known = manifest.variant(variant) or Variant(variant, report)
        told = msgspec.structs.replace(known, parity=report)
        manifest = _with_variant(manifest, told)
    return write_manifest(bundle.folder, manifest, key=key)


def record_identity(
    bundle: Bundle,
    identity: Identity,
    *,
    variant: VariantPrecision,
    key: str | os.PathLike[str] | None = None,
) -> Bundle:
    """Put what judges found of a variant into the manifest.

    Raises:
        BundleError: The bundle has no such variant, or is signed and no key was given to sign it
            again.
        StorageError: The folder cannot be written to.
    """
    known = bundle.manifest.variant(variant)
    if known is None:
        raise BundleError(f"{bundle.folder} has no variant {variant!r}; {REBUILD}", bundle.folder)
    _check_may_change(bundle, key)
    told = msgspec.structs.replace(known, identity=identity)
    return write_manifest(bundle.folder, _with_variant(bundle.manifest, told), key=key)


def _with_variant(manifest: Manifest, told: Variant) -> Manifest:
    """A manifest with one variant put in, or in the place of the one of the same precision."""
    variants = {variant.precision: variant for variant in manifest.variants}
    variants[told.precision] = told
    return msgspec.structs.replace(manifest, variants=tuple(variants.values()))


def _check_may_change(bundle: Bundle, key: str | os.PathLike[str] | None) -> None:
    if key is None and os.path.lexists(bundle.folder / SIGNATURE):
        raise BundleError(
            f"{bundle.folder} is signed, and a new manifest needs a new signature; "
            "give the private key with --sign KEY",
            bundle.folder,
        )


def _is_older(version: str, minimum: str) -> bool:
    try:
        return Version(version) < Version(minimum)
    except InvalidVersion as error:
        raise BundleError(f"{error}, expected a version such as 1.23; {REBUILD}") from error

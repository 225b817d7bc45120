"""Build a bundle for a card that this machine does not have, sign it, and say how it is run there.

    python examples/build_for_another_card.py --pair runs/mine/result -o bundle --target sm_89

The engines are built on a CPU. They cannot run here, so the parity gate compares the same graphs
in ONNX Runtime; `verify` on the machine with the card compares the engines themselves. The private
key stays here: the machine that draws needs `key.pub.pem` alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def bootpig(*words: object) -> None:
    """Run a command of bootpig-rt; its error is told and ends the script."""
    command = [sys.executable, "-m", "bootpig_rt", *map(str, words)]
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)


def make_keys(private: Path, public: Path) -> None:
    """Write an Ed25519 key pair, as `openssl genpkey -algorithm ed25519` would."""
    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    private.touch(mode=0o600)
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem, spki))


def main() -> None:
    """Build, sign, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--target", default="sm_89", help="sm_89 is an RTX 40 card")
    parser.add_argument("--keys", type=Path, default=Path("keys"), help="made where not there")
    parser.add_argument("build", nargs="*", help="further options of build-engine, after --")
    args = parser.parse_args()
    private, public = args.keys / "key.pem", args.keys / "key.pub.pem"
    if not private.is_file():
        args.keys.mkdir(parents=True, exist_ok=True)
        make_keys(private, public)
    pair = ("--pair", args.pair)
    bootpig("build-engine", *pair, "-o", args.output, "--target", args.target, "--dry-run")
    words = ("build-engine", *pair, "-o", args.output, "--target", args.target, "--sign", private)
    bootpig(*words, *args.build)
    bootpig("verify", args.output, "--files-only", "--trust", public)
    print(
        f"copy {args.output} and {public} to the machine with the card, and there run:\n"
        f"  bootpig-rt verify {args.output} --pair PAIR --trust {public.name}\n"
        f"  bootpig-rt serve --model {args.output} --trust {public.name}"
    )


if __name__ == "__main__":
    main()

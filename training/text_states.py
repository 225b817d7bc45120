"""Text states of a data set, computed once with a frozen text encoder, a file for each shard.

Worth it where the text encoder is large: it is left out of every step. A text that several samples
of a shard share, as most reference prompts are, is kept once. See `caches.py` for who makes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bootpig_rt.models.weights import digest_tensors
from bootpig_rt.text.tokenizer import Tokenizer
from bootpig_rt.training.caches import make_missing, map_tensors, write_tensors
from bootpig_rt.training.samples import Samples

FORMAT = 1
_TOGETHER = 64


@dataclass(frozen=True)
class _Shard:
    """States [U, S, E] of the texts of one shard, and which are those of each row, [n] each."""

    states: Tensor
    caption: Tensor
    prompt: Tensor


@dataclass(frozen=True)
class StoredTexts:
    """Text states of a data set. Safe in threads.

    Attributes:
        empty: [S, E], of the empty prompt.
    """

    samples: Samples
    shards: Sequence[_Shard]
    empty: Tensor

    def captions(self, indices: Sequence[int]) -> Tensor:
        """Of the captions of some samples, float16 [B, S, E]."""
        return self._stack([shard.states[shard.caption[row]] for shard, row in self._at(indices)])

    def reference_prompts(self, indices: Sequence[int]) -> Tensor:
        """Of their reference prompts, float16 [B, S, E]."""
        return self._stack([shard.states[shard.prompt[row]] for shard, row in self._at(indices)])

    def _at(self, indices: Sequence[int]) -> list[tuple[_Shard, int]]:
        places = (self.samples.locate(sample) for sample in indices)
        return [(self.shards[shard], row) for shard, row in places]

    def _stack(self, states: list[Tensor]) -> Tensor:
        return torch.stack(states) if states else self.empty[None][:0]


def store_texts(
    samples: Samples,
    tokenizer: Tokenizer,
    text_encoder: Any,
    cache: Path,
    *,
    tokenizer_folders: Sequence[Path | None],
    device: torch.device,
) -> StoredTexts:
    """Map the text states of a data set; make those that are missing.

    Args:
        samples: The data set.
        tokenizer: Of the text encoder.
        text_encoder: Frozen; its weights are part of the files' names.
        cache: Folder for them, of all data sets.
        tokenizer_folders: Of the tokenizer, one or two; so are their files.
        device: Where the text encoder is.

    Raises:
        StorageError: A file cannot be written, or is damaged.
    """
    settings: list[Any] = [FORMAT, digest_tensors(text_encoder.state_dict())]
    settings += [_digest(folder) for folder in tokenizer_folders if folder is not None]
    if tokenizer.sizes:
        settings += [tokenizer.sizes, text_encoder.zeros_for_empty]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    folder = cache / f"texts-{digest[:16]}"
    files = [
        folder / f"{sha256[:16]}-{count}.safetensors"
        for sha256, count in zip(samples.digests, samples.shard_sizes, strict=True)
    ]

    def make(shard: int, advance: Callable[[int], object]) -> None:
        which = samples.range_of(shard)
        rows: dict[str, int] = {}
        places = torch.tensor(
            [
                [rows.setdefault(text, len(rows)) for text in samples.texts(sample)]
                for sample in which
            ]
        )
        texts, parts = list(rows), []
        for start in range(0, len(texts), _TOGETHER):
            parts.append(_encode(text_encoder, tokenizer, texts[start : start + _TOGETHER], device))
            advance(len(which) * len(parts[-1]) // len(texts))
        write_tensors(
            files[shard],
            {"states": torch.cat(parts), "caption": places[:, 0], "prompt": places[:, 1]},
            {},
        )

    make_missing(files, samples.shard_sizes, make, what="text states", unit="sample")
    shards = [_Shard(**map_tensors(file)[0]) for file in files]
    return StoredTexts(samples, shards, _encode(text_encoder, tokenizer, [""], device)[0])


@torch.no_grad()
def _encode(
    text_encoder: Any, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device
) -> Tensor:
    ids = torch.from_numpy(tokenizer(list(texts))).to(device)
    states: Tensor = text_encoder(ids)[0]
    return states.to("cpu", torch.float16)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()

"""Prompts to token ids, as the text encoder of a Stable Diffusion folder expects them.

The ids are those of transformers' CLIPTokenizer, computed by the `tokenizers` package alone. This
file knows nothing about embeddings; what a prompt may be is the caller's business (`check_prompt`).
Where a pair has two text encoders, the ids of both and the picture's sizes are one row of numbers.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

from bootpig_rt.errors import CheckpointError, describe_os_error

logger = logging.getLogger(__name__)

TokenIds: TypeAlias = npt.NDArray[np.int64]

Sizes: TypeAlias = tuple[int, ...]
"""Height and width of the original, top and left of the crop, height and width of the target: what
a pair of two text encoders is told of a picture beside its prompt. Empty for other pairs."""

_MAX_LENGTH = 77
# Configurations say "no limit" with a number like 1e30. No text encoder here is that long.
_MAX_SENSIBLE_LENGTH = 4096
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
_COPY_AGAIN = "copy the tokenizer folder again"

# CLIP's split into words, from the code published with the model: special tokens, English endings,
# runs of letters, single digits, runs of anything else. The folder does not say it.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


@dataclass(frozen=True)
class SpecialTokens:
    """What a tokenizer folder says beside its vocabulary.

    Attributes:
        bos: Begin token.
        eos: End token.
        unk: Stands for what the vocabulary cannot spell.
        pad: Padding token; in Stable Diffusion 2 it is "!".
        max_length: S, ids in a row, begin and end token included.
        added: How tokens are looked for in a prompt, by their text.
    """

    bos: str
    eos: str
    unk: str
    pad: str
    max_length: int
    added: dict[str, AddedToken]


def whole_picture(width: int, height: int) -> Sizes:
    """What is said of a picture that is neither scaled nor cropped."""
    return height, width, 0, 0, height, width


class Tokenizer:
    """Turns prompts into rows of token ids of one length. Safe to share between threads.

    Attributes:
        max_length: S, ids in a row, begin and end token included; 77 for CLIP.
        bos_id: Stands before every prompt.
        eos_id: Stands behind every prompt.
        pad_id: Fills the rest of the row.
        sizes: What prompts are told with, unless it is said; empty where there is no second text
            encoder.
    """

    _second: Tokenizer | None = None
    sizes: Sizes = ()

    def __init__(self, tokenizer: tokenizers.Tokenizer, special: SpecialTokens) -> None:
        """Take over a tokenizer; `from_folder` makes one.

        Args:
            tokenizer: Its post-processor adds the begin and end tokens, which its vocabulary has.
            special: Names of the special tokens, and S.
        """
        tokenizer.no_truncation()  # done here, where it can be told
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.max_length = special.max_length
        vocabulary = tokenizer.get_vocab()
        self.bos_id = vocabulary[special.bos]
        self.eos_id = vocabulary[special.eos]
        self.pad_id = vocabulary[special.pad]

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        second: str | os.PathLike[str] | None = None,
        *,
        sizes: Sizes = (),
    ) -> Tokenizer:
        """Read the `tokenizer` folder of a Stable Diffusion model.

        Args:
            folder: Holds `tokenizer.json`, or `vocab.json` and `merges.txt`; and optionally
                `tokenizer_config.json` and `special_tokens_map.json`, which name the special
                tokens and the length.
            second: `tokenizer_2` of a pair with two text encoders.
            sizes: Six numbers that its prompts are told with, unless it is said.

        Raises:
            CheckpointError: A file is missing, damaged, or of another kind of tokenizer.
        """
        folder = Path(folder)
        special = _read_special_tokens(folder)
        vocabulary, merges = _check_vocabulary(*_read_vocabulary(folder), special, folder)
        made = cls(_build_clip(vocabulary, merges, special), special)
        if second is not None:
            made._second, made.sizes = cls.from_folder(second), sizes
        return made

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        sizes: Sequence[Sizes] | None = None,
        tells_cut: bool = True,
    ) -> TokenIds:
        """Turn prompts into ids.

        A prompt that is too long is cut, as by the published pipelines.

        Args:
            prompts: N texts that were checked; empty ones are fine here, guidance needs one.
            sizes: Of each prompt's picture, for a pair of two text encoders; by default `sizes`.
            tells_cut: Log a warning for a prompt that is cut, as `tell_cut` does.

        Returns:
            int64 [N, S]: begin token, words, end token, padding. With two text encoders
            [N, 2 S + 6]: ids for the first, ids for the second, sizes.
        """
        ids = np.full((len(prompts), self.max_length), self.pad_id, np.int64)
        for row, prompt in enumerate(prompts):
            tokens = self._tell_cut(prompt) if tells_cut else self._tokens(prompt)
            if len(tokens) > self.max_length:
                tokens = [*tokens[: self.max_length - 1], self.eos_id]
            ids[row, : len(tokens)] = tokens
        if self._second is None:
            return ids
        told = np.array([self.sizes] * len(prompts) if sizes is None else sizes, np.int64)
        more = self._second(prompts, tells_cut=False)
        return np.concatenate([ids, more, told.reshape(len(prompts), -1)], axis=1)

    def tell_cut(self, *prompts: str) -> None:
        """Log a warning for each prompt that is too long: its end is ignored.

        For whoever keeps text states: a request is told of its cut prompt, whether or not its
        states are there already.
        """
        for prompt in prompts:
            self._tell_cut(prompt)

    def num_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, begin and end token included; what is over S is ignored."""
        return len(self._tokens(prompt))

    def _tell_cut(self, prompt: str) -> list[int]:
        tokens = self._tokens(prompt)
        if len(tokens) > self.max_length:
            logger.warning(
                "the prompt has %d tokens, the text encoder reads %d; the end is ignored, "
                "shorten it",
                len(tokens),
                self.max_length,
            )
        return tokens

    def _tokens(self, prompt: str) -> list[int]:
        """Ids of a prompt of any length, begin and end token included."""
        tokens: list[int] = self._tokenizer.encode(prompt).ids
        return tokens


def _build_clip(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], special: SpecialTokens
) -> tokenizers.Tokenizer:
    """Put CLIP's byte-level BPE together, as transformers does."""
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=special.unk,
            continuing_subword_prefix="",
            end_of_word_suffix=_END_OF_WORD,
            fuse_unk=False,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (special.eos, vocabulary[special.eos]),
        (special.bos, vocabulary[special.bos]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    # Special tokens are found in the prompt's text, padding too: with "!" as the padding token,
    # "hello!" ends in a padding id. The published pipelines do that, and the pair learnt it.
    names = dict.fromkeys([*special.added, special.bos, special.eos, special.unk, special.pad])
    tokenizer.add_special_tokens(
        [
            special.added.get(name, AddedToken(name, special=True, normalized=False))
            for name in names
        ]
    )
    return tokenizer


def _read_special_tokens(folder: Path) -> SpecialTokens:
    """Merge what the folder's configuration files say, in the order that transformers does."""
    settings = _read_json(folder / "tokenizer_config.json", default={})
    listed = settings.get("added_tokens_decoder")
    if not isinstance(listed, dict):  # newer folders list their tokens there; in older ones:
        settings = {**settings, **_read_json(folder / "special_tokens_map.json", default={})}
        tokens = _read_json(folder / "tokenizer.json", default={}).get("added_tokens") or []
        listed = dict(enumerate(tokens))
    added = {
        token["content"]: _added_token(token)
        for token in listed.values()
        if isinstance(token, dict) and isinstance(token.get("content"), str)
    }
    # What is listed counts; else the last of these that names a token says how it is found.
    known = frozenset(added)
    for name in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{name}_token")
        token = {"content": token} if isinstance(token, str) else token
        if isinstance(token, dict) and token.get("content") not in known:
            added[str(token.get("content"))] = _added_token(token)

    def name_of(key: str, default: str) -> str:
        value = settings.get(f"{key}_token")
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else default

    length = settings.get("model_max_length", _MAX_LENGTH)
    if not isinstance(length, (int, float)) or not length >= 2:  # NaN too
        raise CheckpointError(
            f"model_max_length in {str(folder / 'tokenizer_config.json')!r} is {length!r}, "
            f"expected a number of at least 2 such as {_MAX_LENGTH}; {_COPY_AGAIN}",
            folder,
        )
    return SpecialTokens(
        bos=name_of("bos", _BOS),
        eos=name_of("eos", _EOS),
        unk=name_of("unk", _EOS),
        pad=name_of("pad", _EOS),
        max_length=int(length) if length <= _MAX_SENSIBLE_LENGTH else _MAX_LENGTH,
        added=added,
    )


def _added_token(token: dict[str, Any]) -> AddedToken:
    """A special token from what a JSON file says of it."""
    flags = {
        name: bool(token.get(name)) for name in ("single_word", "lstrip", "rstrip", "normalized")
    }
    return AddedToken(str(token.get("content")), special=True, **flags)


def _read_vocabulary(folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """Read tokens with their ids, and the pairs to merge, from whichever files are there."""
    one_file = folder / "tokenizer.json"
    if one_file.exists():
        model = _read_json(one_file).get("model")
        if not isinstance(model, dict) or model.get("end_of_word_suffix") != _END_OF_WORD:
            raise CheckpointError(
                f"{str(one_file)!r} is no CLIP tokenizer (BPE that ends words with "
                f"{_END_OF_WORD!r}), expected that of a Stable Diffusion 1 or 2 model; "
                "use that model's tokenizer folder",
                one_file,
            )
        pairs = model.get("merges") or []
        return model.get("vocab") or {}, [
            pair.split(" ") if isinstance(pair, str) else pair for pair in pairs
        ]
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"tokenizer folder {str(folder)!r} has no {' and no '.join(missing)}, expected "
            f"vocab.json and merges.txt, or tokenizer.json; {_COPY_AGAIN}",
            folder,
        )
    # Not splitlines(): it would also break at characters that are part of tokens.
    lines = _read_text(folder / "merges.txt").split("\n")
    if lines[0].startswith("#version"):
        lines = lines[1:]
    return _read_json(folder / "vocab.json"), [line.split() for line in lines if line.strip()]


def _check_vocabulary(
    vocabulary: dict[str, Any], merges: list[Any], special: SpecialTokens, folder: Path
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Refuse files that do not belong together, before the Rust side meets them.

    Raises:
        CheckpointError: Names the first token at fault.
    """

    def fault() -> str:
        for token, index in vocabulary.items():
            if not isinstance(index, int) or not 0 <= index < 2**31:
                return f"the id {index!r} for {token!r}"
        for name in (special.bos, special.eos, special.unk, special.pad):
            if name not in vocabulary:
                return f"no special token {name!r}"
        for pair in merges:
            if not isinstance(pair, list) or [type(part) for part in pair] != [str, str]:
                return f"a merge that is no pair of tokens, {pair!r:.40}"
            if not {*pair, "".join(pair)} <= vocabulary.keys():
                return f"no token for the merge {' '.join(pair)!r:.40}"
        return ""

    if found := fault():
        raise CheckpointError(
            f"the vocabulary in {str(folder)!r} has {found}, expected files of one CLIP "
            f"tokenizer; {_COPY_AGAIN}",
            folder,
        )
    return vocabulary, [(first, second) for first, second in merges]


def _read_json(path: Path, *, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a JSON object; `default`, if given, stands for a file that does not exist."""
    if default is not None and not path.exists():
        return default
    try:
        contents = json.loads(_read_text(path))
    except (ValueError, RecursionError):
        contents = None
    if not isinstance(contents, dict):
        raise CheckpointError(f"{str(path)!r} is no JSON object; {_COPY_AGAIN}", path)
    return contents


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{str(path)!r} is no UTF-8 text; {_COPY_AGAIN}", path) from error
    except OSError as error:
        reason = describe_os_error(OSError(error.errno, error.strerror or str(error)))
        raise CheckpointError(f"cannot read {str(path)!r}: {reason}", path) from error

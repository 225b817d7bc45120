"""A small byte-pair vocabulary in the layout of CLIP's tokenizer, learned from the captions.

The same captions always give the same files. The trainer of the `tokenizers` package does not: it
meets words in the order of a hash that differs from process to process, so its ties fall otherwise
each time, and a run could not be repeated.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

from bootpig_rt.files.atomic import atomic_write_text

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
MIN_PAIRS = 2
"""A pair of tokens that is seen less often is not merged."""

Pair = tuple[str, str]


def train_tokenizer(
    captions: Iterable[str], folder: Path, *, vocabulary: int, max_tokens: int
) -> None:
    """Write `vocab.json`, `merges.txt` and `tokenizer_config.json` into a folder.

    Every byte is in the vocabulary, alone and at the end of a word, so any text has tokens.
    `vocabulary` is the largest number of them, at least 514, `max_tokens` the length of a prompt.

    Raises:
        StorageError: A file cannot be written.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [f"{letter}{END_OF_WORD}" for letter in alphabet]
    merges = learn_merges(_count_words(captions), vocabulary - len(tokens) - 2)
    tokens += [left + right for left, right in merges]
    tokens += [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: i for i, token in enumerate(tokens)}
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    settings: dict[str, Any] = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_tokens,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "do_lower_case": True,
    }
    atomic_write_text(folder / "vocab.json", json.dumps(ids, ensure_ascii=False))
    atomic_write_text(folder / "merges.txt", "\n".join(lines) + "\n")
    # The last file: a folder that has it is whole.
    atomic_write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=1) + "\n")


def learn_merges(words: dict[tuple[str, ...], int], most: int) -> list[Pair]:
    """Learn byte-pair merges: each time the most frequent pair of neighbours, ties by name.

    `words` are tuples of tokens, with how often each is seen. Merges come in the order in which
    they apply, `most` of them; no two make the same token.
    """
    spelled = list(words)
    weights = [words[word] for word in spelled]
    counts: Counter[Pair] = Counter()
    users: defaultdict[Pair, set[int]] = defaultdict(set)
    for place, word in enumerate(spelled):
        for pair in pairwise(word):
            counts[pair] += weights[place]
            users[pair].add(place)
    merges: list[Pair] = []
    made: set[str] = set()
    while len(merges) < most:
        allowed = (p for p in counts if counts[p] >= MIN_PAIRS and p[0] + p[1] not in made)
        best = min(allowed, key=lambda p: (-counts[p], p), default=None)
        if best is None:
            break
        merges.append(best)
        made.add(best[0] + best[1])
        for place in sorted(users[best]):
            for pair in pairwise(spelled[place]):
                counts[pair] -= weights[place]
                users[pair].discard(place)
            spelled[place] = _join(spelled[place], best)
            for pair in pairwise(spelled[place]):
                counts[pair] += weights[place]
                users[pair].add(place)
    return merges


def _join(word: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    joined: list[str] = []
    for token in word:
        # A token just made never joins again in the same pass: "aaa" becomes "aa a".
        if joined and (joined[-1], token) == pair:
            joined[-1] += token
        else:
            joined.append(token)
    return tuple(joined)


def _count_words(captions: Iterable[str]) -> dict[tuple[str, ...], int]:
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words: Counter[str] = Counter()
    for caption, count in Counter(captions).items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)):
            words[word] += count
    return {(*word[:-1], word[-1] + END_OF_WORD): count for word, count in sorted(words.items())}

"""The stages that make captions: each item is one question, and has many captions for outcomes.

Question `a` has captions a * PER_QUESTION and on, so that each has an index of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bootpig_rt.errors import CheckpointError, ConfigError, InputError, describe_os_error
from bootpig_rt.training.bootstrap.config import BootstrapConfig
from bootpig_rt.training.bootstrap.endpoint import Endpoint
from bootpig_rt.training.bootstrap.folders import (
    check_folder,
    choose_device,
    choose_dtype,
    load_model,
    load_processor,
)
from bootpig_rt.training.bootstrap.parse import (
    NoCaption,
    ParsedCaption,
    parse_caption,
    split_answer,
)
from bootpig_rt.training.bootstrap.stage import Item, Outcome, Reject, Stage
from bootpig_rt.training.bootstrap.words import INSTRUCTION, draw_general_caption, theme_of
from bootpig_rt.training.captions import draw_caption
from bootpig_rt.training.emoji import load_drawings, load_sources
from bootpig_rt.training.splits import load_splits

NAME = "captions"
PER_QUESTION = 100_000
GRAMMAR_PER_QUESTION = 1000
MAX_LINE = 1000
"""Characters of a line of the user's own file; a longer one is no caption, whatever it is."""

_QUESTION = 3


def make_captions(config: BootstrapConfig) -> Stage:
    """The stage of the configured source."""
    kinds: dict[str, Callable[[BootstrapConfig], Stage]] = {
        "grammar": GrammarCaptions,
        "world": WorldCaptions,
        "llm": LlmCaptions,
        "endpoint": EndpointCaptions,
        "file": FileCaptions,
    }
    return kinds[config.captions.source](config)


def expected_per_question(config: BootstrapConfig) -> int:
    """About how many captions one question gives."""
    settings = config.captions
    if settings.source == "llm":
        return settings.per_ask * settings.answers
    if settings.source == "endpoint":
        return settings.per_ask
    return min(GRAMMAR_PER_QUESTION, settings.count)


def outcomes_of(lines: Sequence[str], question: int, max_words: int) -> tuple[Outcome, ...]:
    """What was written for a question: captions, and rejects with their reasons."""
    outcomes: list[Outcome] = []
    for number, line in enumerate(lines[:PER_QUESTION]):
        index = question * PER_QUESTION + number
        parsed = parse_caption(line, max_words)
        if isinstance(parsed, NoCaption):
            outcomes.append(Reject(index, NAME, parsed.reason, parsed.detail))
        else:
            outcomes.append(Item(index, parsed.text, parsed.noun, parsed.position, parsed.scene))
    if not outcomes:
        outcomes.append(Reject(question * PER_QUESTION, NAME, "no_answer", "an empty answer"))
    return tuple(outcomes)


class GrammarCaptions:
    """The general grammar: things, positions and scenes."""

    name = NAME
    batch_size = 1

    def __init__(self, config: BootstrapConfig) -> None:
        self._seed, self._max_words = config.seed, config.captions.max_words

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        """Draw a thousand captions for each question."""
        found = []
        for item in items:
            rng = np.random.default_rng((self._seed, item.index, _QUESTION))
            lines = [draw_general_caption(rng) for _ in range(GRAMMAR_PER_QUESTION)]
            found.append(outcomes_of(lines, item.index, self._max_words))
        return found


class WorldCaptions:
    """The grammar of the small world that the shipped pair draws, held-out things left out."""

    name = NAME
    batch_size = 1

    def __init__(self, config: BootstrapConfig) -> None:
        self._seed, self._max_words = config.seed, config.captions.max_words
        splits = load_splits()
        drawings = load_drawings([source.style for source in load_sources()])
        self._concepts = sorted({d.concept: d.noun for d in drawings}.items())
        self._concepts = [(c, noun) for c, noun in self._concepts if c not in splits.concepts]
        self._held_out = splits.held_out_scenes()

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        """Draw a thousand captions for each question."""
        found = []
        for item in items:
            rng = np.random.default_rng((self._seed, item.index, _QUESTION))
            lines = [self._draw(rng) for _ in range(GRAMMAR_PER_QUESTION)]
            found.append(outcomes_of(lines, item.index, self._max_words))
        return found

    def _draw(self, rng: np.random.Generator) -> str:
        while True:
            concept, noun = self._concepts[int(rng.integers(len(self._concepts)))]
            caption = draw_caption(rng, noun)
            is_held_out = caption.scene in self._held_out.get(concept, frozenset())
            if not is_held_out and isinstance(
                parse_caption(caption.text, self._max_words), ParsedCaption
            ):
                return caption.text


class FileCaptions:
    """The user's own captions, a line each. There is one question: the file.

    Raises:
        InputError: It cannot be read, is empty, or is no text in lines.
    """

    name = NAME
    batch_size = 1

    def __init__(self, config: BootstrapConfig) -> None:
        self._lines = read_lines(Path(config.captions.file))
        self._max_words = config.captions.max_words

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        """Read the file."""
        return [outcomes_of(self._lines, item.index, self._max_words) for item in items]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, never more than a line's length in memory.

    Raises:
        InputError: It cannot be read, has no lines, or a line that is too long or no text.
    """
    lines = []
    try:
        with path.open("rb") as stream:
            number = 0
            while data := stream.readline(4 * MAX_LINE + 1):
                number += 1
                try:
                    text = data.decode("utf-8").strip("\ufeff \t\r\n")
                except UnicodeDecodeError as error:
                    if len(data) <= 4 * MAX_LINE:
                        raise InputError(
                            f"{path}, line {number} is no UTF-8 ({error.reason}); save the file "
                            "as UTF-8"
                        ) from error
                    text = ""
                if len(data) > 4 * MAX_LINE or len(text) > MAX_LINE:
                    raise InputError(
                        f"{path}, line {number} has over {MAX_LINE} characters, expected one "
                        "caption a line, such as 'a photo of a dog, on a beach'"
                    )
                if text:
                    lines.append(text)
                if len(lines) > PER_QUESTION:
                    raise InputError(
                        f"{path} has over {PER_QUESTION} captions; split it, and run once for each"
                    )
    except OSError as error:
        raise InputError(f"cannot read the captions: {describe_os_error(error)}") from error
    if not lines:
        raise InputError(f"{path} has no captions, expected one a line")
    return lines


def read_instruction(config: BootstrapConfig) -> str:
    """The instruction of a language model, with {count} and {theme}.

    Raises:
        ConfigError: The user's own cannot be read, or lacks {count}.
    """
    if not config.captions.instruction:
        return INSTRUCTION
    try:
        text = Path(config.captions.instruction).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read captions.instruction: {reason}") from error
    if "{count}" not in text:
        raise ConfigError(
            f"{config.captions.instruction} has no {{count}}; write where the number of captions "
            "goes, and {theme} where a theme goes"
        )
    return text


def _question(instruction: str, config: BootstrapConfig, ask: int) -> str:
    count = str(config.captions.per_ask)
    return instruction.replace("{count}", count).replace("{theme}", theme_of(ask))


def _seed(config: BootstrapConfig, ask: int) -> int:
    return int(np.random.SeedSequence((config.seed, ask, _QUESTION)).generate_state(1)[0]) >> 1


class LlmCaptions:
    """A causal language model of transformers, asked in its own chat template.

    Several answers to one question are drawn at once, so that a question depends on its own seed
    alone and the device is still kept busy.

    Raises:
        CheckpointError: The folder is no such model, is not whole, or has no chat template.
    """

    name = NAME
    batch_size = 1

    def __init__(self, config: BootstrapConfig) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._config = config
        self._instruction = read_instruction(config)
        path, what = config.captions.model, "language model"
        check_folder(path, what)
        self._device = choose_device(config.device)
        self._tokenizer = load_processor(AutoTokenizer, path, what)
        if not self._tokenizer.chat_template:
            raise CheckpointError(
                f"{what} {path} has no chat template; expected a model that follows instructions, "
                "with chat_template.jinja or one in tokenizer_config.json",
                path,
            )
        dtype = choose_dtype(config.dtype, self._device)
        self._model = load_model(AutoModelForCausalLM, path, what, self._device, dtype)

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        """Ask each question."""
        found = []
        for item in items:
            answers = self._answers(item.index)
            lines = [line for answer in answers for line in split_answer(answer)]
            found.append(outcomes_of(lines, item.index, self._config.captions.max_words))
        return found

    @torch.inference_mode()
    def _answers(self, ask: int) -> list[str]:
        settings = self._config.captions
        question = _question(self._instruction, self._config, ask)
        inputs: Any = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._device)
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(_seed(self._config, ask))
            sampling = {"do_sample": True, "temperature": settings.temperature}
            output = self._model.generate(
                **inputs,
                **(sampling if settings.temperature > 0 else {"do_sample": False}),
                max_new_tokens=settings.max_new_tokens,
                num_return_sequences=settings.answers if settings.temperature > 0 else 1,
                pad_token_id=self._padding(),
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        answers: list[str] = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        return answers

    def _padding(self) -> int | None:
        pad: int | None = self._tokenizer.pad_token_id
        end: int | None = self._tokenizer.eos_token_id
        return end if pad is None else pad


class EndpointCaptions:
    """An OpenAI-compatible endpoint, several questions at once.

    Raises:
        ConfigError: The address or the instruction cannot be used.
    """

    name = NAME

    def __init__(self, config: BootstrapConfig) -> None:
        self._config = config
        self._instruction = read_instruction(config)
        self._endpoint = Endpoint(config.captions)
        self.batch_size = config.captions.batch_size

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        """Ask each question."""
        with ThreadPoolExecutor(len(items)) as pool:
            answers = list(pool.map(self._ask, [item.index for item in items]))
        most = self._config.captions.max_words
        return [
            outcomes_of(split_answer(answer), item.index, most)
            for item, answer in zip(items, answers, strict=True)
        ]

    def _ask(self, ask: int) -> str:
        question = _question(self._instruction, self._config, ask)
        return self._endpoint.ask(question, _seed(self._config, ask))

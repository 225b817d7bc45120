"""What the documentation takes from the code when it is built, and a check that it loads nothing.

Pages ask for a part with a line `<!-- generated: NAME -->`. `commands` is every command of the
command line as its parser describes it; `errors` is every error with its exit code.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from bootpig_rt import errors
from bootpig_rt.cli.main import MODULE_OF_COMMAND, build_parser

_MARK = re.compile(r"^<!-- generated: (\S+) -->$", re.M)
_NOT_LOADED = {"alternate", "canonical", "next", "prev"}
_STYLE_LOADS = re.compile(r"""(?:@import\s*["']|url\(["']?)((?:https?:)?//[^"')]+)""")


def on_config(config: Any) -> Any:
    """Put every page of docs/results/ into the navigation, by the names of their files."""
    pages = sorted(path.stem for path in Path(config.docs_dir, "results").glob("*.md"))
    pages.remove("index")
    for section in config.nav:
        if section.get("Results") == "results/":
            named = [{_title(page): f"results/{page}.md"} for page in pages]
            section["Results"] = ["results/index.md", *named]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write the generated parts of a page."""
    return _MARK.sub(lambda found: PARTS[found.group(1)](), markdown)


def on_post_build(config: Any) -> None:
    """Refuse a site that loads something from elsewhere."""
    found = [f"{path}: {url}" for path in _files(Path(config.site_dir)) for url in loads(path)]
    if found:
        raise SystemExit("these pages load from the network:\n" + "\n".join(found))


def loads(path: Path) -> list[str]:
    """What an HTML page or a style sheet loads from another host; links do not count."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return _STYLE_LOADS.findall(text)
    page = _Page()
    page.feed(text)
    return page.loads


def commands() -> str:
    """Every command: what it does, its usage, and its options as tables."""
    parsers = _subparsers(build_parser())
    return "\n\n".join(_command(name, parsers[name]) for name in MODULE_OF_COMMAND)


def error_table() -> str:
    """Every error: its exit code, what else catches it, and what it means."""
    lines = ["| error | exit code | is also | meaning |", "|---|---|---|---|"]
    for kind in sorted(_errors(errors.BootPIGError), key=lambda each: each.__name__):
        parents = [f"`{base.__name__}`" for base in kind.__bases__ if base is not Exception]
        meaning = (kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        link = f"[`{kind.__name__}`][bootpig_rt.errors.{kind.__name__}]"
        lines.append(f"| {link} | {kind.exit_code} | {', '.join(parents)} | {meaning} |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {"commands": commands, "errors": error_table}


class _Page(HTMLParser):
    """Collects what a page loads from another host."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the address of a script, a picture, a frame, or a link that is followed at once."""
        values = {name: value or "" for name, value in attrs}
        told = values.get("href" if tag == "link" else "src", "")
        is_followed = tag != "link" or not _NOT_LOADED.intersection(values.get("rel", "").split())
        if tag != "a" and is_followed and told.startswith(("http://", "https://", "//")):
            self.loads.append(told)


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=80)
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    lines = [f"## {name}", "", f"{_sentence(parser.description)}", "", "```text", usage, "```"]
    for group in parser._action_groups:
        actions = [each for each in group._group_actions if _is_told(each)]
        if not actions:
            continue
        lines += ["", f"| {group.title} | |", "|---|---|"]
        lines += [f"| {_names(each)} | {_help(each, parser)} |" for each in actions]
    if parser.epilog:
        lines += ["", "```text", parser.epilog.strip("\n"), "```"]
    return "\n".join(lines)


def _names(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else None)
    if not action.option_strings:
        return f"`{value or action.dest}`"
    if action.nargs == 0:
        return ", ".join(f"`{name}`" for name in action.option_strings)
    shown = str(value or action.dest.upper()).replace("|", "\\|")
    return ", ".join(f"`{name}`" for name in action.option_strings) + f" `{shown}`"


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _is_told(action: argparse.Action) -> bool:
    hidden = action.help == argparse.SUPPRESS or {"-h", "--debug"}.intersection(
        action.option_strings
    )
    return not hidden


def _sentence(text: str | None) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise LookupError("the parser has no commands")


def _errors(kind: type[errors.BootPIGError]) -> Iterator[type[errors.BootPIGError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _errors(each)


def _files(folder: Path) -> list[Path]:
    return sorted([*folder.rglob("*.html"), *folder.rglob("*.css")])


def _title(name: str) -> str:
    """`baselines-cuda` as `Baselines, GPU`."""
    suite, _, device = name.partition("-")
    return f"{suite.capitalize()}, {device.replace('cuda', 'gpu').upper()}" if device else suite

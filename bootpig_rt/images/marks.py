"""What a file says of its picture: that a trained model made it, with what, from which parameters.

The words are XMP's, so that other programs read them: `Iptc4xmpExt:DigitalSourceType` of the
International Press Telecommunications Council, and a property of our own that holds the parameters
as JSON. This file makes and reads packets of XMP; `encode_image.py` puts them into files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from bootpig_rt import __version__
from bootpig_rt.errors import ParameterError

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""Made by a model that was trained on samples."""

CREATOR_TOOL = f"bootpig-rt {__version__}"
PROMPT_NAMES = ("prompt", "negative_prompt", "reference_prompt")
MAX_PACKET_BYTES = 8 * 2**20  # of a stranger's file

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_NOTE = "http://ns.adobe.com/xmp/note/"
_OURS = "urn:bootpig-rt:xmp:1/"

# A picture that holds parts made by a model is one that people should be told of as well.
_SAID_OF_GENERATED = {
    GENERATED.partition("://")[2],
    "cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia",
}


@dataclass(frozen=True)
class Marks:
    """What a picture's XMP says.

    Attributes:
        is_generated: That a trained model made the picture, or parts of it.
        parameters: JSON, from our own property; None where there is none.
    """

    is_generated: bool = False
    parameters: str | None = None


def to_json(parameters: Mapping[str, Any]) -> str:
    """Parameters as JSON in ASCII, which every place for text in a file can hold.

    Raises:
        ParameterError: JSON cannot hold them.
    """
    try:
        return json.dumps(dict(parameters), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ParameterError(
            f"the parameters of a picture do not fit JSON ({error}); "
            "use text, finite numbers, lists and dicts"
        ) from error


def without_prompts(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, at any depth, without what people wrote: prompts are private to some."""
    return {
        name: _without_prompts(value)
        for name, value in parameters.items()
        if name not in PROMPT_NAMES
    }


def _without_prompts(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_prompts(value)
    if isinstance(value, list | tuple):
        return [_without_prompts(one) for one in value]
    return value


def xmp_packet(
    *, is_generated: bool, parameters: str | None = None, extension: str | None = None
) -> bytes:
    """A packet of XMP.

    Args:
        is_generated: Say that a trained model made the picture.
        parameters: JSON in ASCII, from `to_json`.
        extension: Name of a second packet that goes on where the place for this one ends.

    Returns:
        UTF-8, with the wrapper by which programs find it in a file.
    """
    properties = [f"<xmp:CreatorTool>{escape(CREATOR_TOOL)}</xmp:CreatorTool>"]
    if is_generated:
        source = f"<Iptc4xmpExt:DigitalSourceType>{GENERATED}</Iptc4xmpExt:DigitalSourceType>"
        properties.append(source)
    if parameters is not None:
        properties.append(_parameters_property(parameters))
    if extension is not None:
        properties.append(f"<xmpNote:HasExtendedXMP>{extension}</xmpNote:HasExtendedXMP>")
    # The mark in `begin`, and this id, are how programs find a packet in a file of any kind.
    begin = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    return f'{begin}{_meta(properties)}<?xpacket end="r"?>'.encode()


def extension_packet(parameters: str) -> bytes:
    """Parameters alone, as a second packet that a first one names."""
    return _meta([_parameters_property(parameters)]).encode()


def read_packet(packet: bytes) -> Marks:
    """What a packet says; nothing of one that is no XMP, or that declares types and entities.

    Args:
        packet: Of anybody's file. It may hold anything, and nothing of it is believed but these
            two properties.
    """
    if len(packet) > MAX_PACKET_BYTES:
        return Marks()
    try:
        text = packet.decode("utf-8").strip("\0\ufeff \t\r\n")
        # XMP has no use for them, and entities can grow a small packet to gigabytes.
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            return Marks()
        root = ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError):
        return Marks()
    sources = _values(root, f"{{{_IPTC}}}DigitalSourceType")
    return Marks(
        is_generated=any(s.strip().partition("://")[2] in _SAID_OF_GENERATED for s in sources),
        parameters=next(_values(root, f"{{{_OURS}}}parameters"), None),
    )


def _values(root: ElementTree.Element, name: str) -> Iterator[str]:
    """Values of a property, which XMP allows as an element, an attribute or a link."""
    for element in root.iter():
        if name in element.attrib:
            yield element.attrib[name]
        if element.tag == name:
            yield element.get(f"{{{_RDF}}}resource") or "".join(element.itertext())


def _parameters_property(parameters: str) -> str:
    return f"<bootpig:parameters>{escape(parameters)}</bootpig:parameters>"


def _meta(properties: list[str]) -> str:
    spaces = {"xmp": _XMP, "xmpNote": _NOTE, "Iptc4xmpExt": _IPTC, "bootpig": _OURS}
    names = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in spaces.items())
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}">'
        f'<rdf:Description rdf:about="" {names}>{"".join(properties)}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    )

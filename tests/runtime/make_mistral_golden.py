"""Writes `golden/mistral-common.json`: what the package `mistral-common` makes of conversations.

Needs `pip install mistral-common sentencepiece`, which nothing else here needs. Written with 1.13.1.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib import resources
from pathlib import Path

from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

FILES = {
    "mistral_v1": "tokenizer.model.v1",
    "mistral_v2v3": "mistral_instruct_tokenizer_240323.model.v3",
    "mistral_v3_tekken": "tekken_240718.json",
    "mistral_v7_tekken": "tekken_240911.json",
}
CONVERSATIONS = {
    "one turn": [("user", "Hi there"), ("assistant", "Hello")],
    "with system": [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello")],
    "two turns": [("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2\nlines")],
    "two turns with system": [
        ("system", "S"), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")],
    "white space": [("user", " Hi \n"), ("assistant", " One  "), ("user", "x "), ("assistant", "\n\nBye \n ")],
    "unicode": [("user", "Grüße 你好 \n\n x"), ("assistant", "été 🙂")],
    "prompt": [("user", "Hi")],
    "prompt with system": [("system", "Be kind."), ("user", "Hi")],
    "prompt after two turns": [("system", "S"), ("user", "One?"), ("assistant", "1"), ("user", "Two?")],
}  # fmt: skip


def text(name: str, messages: list[dict[str, str]]) -> str:
    mode = (
        ValidationMode.finetuning if messages[-1]["role"] == "assistant" else ValidationMode.serving
    )
    path = Path(str(resources.files("mistral_common") / "data" / FILES[name]))
    with tempfile.TemporaryDirectory() as folder:
        if name == "mistral_v7_tekken":
            # The package has no Tekken of version 7; the version is what decides how turns are written.
            values = json.loads(path.read_text(encoding="utf-8"))
            values["config"]["version"] = "v7"
            path = Path(folder) / "tekken.json"
            path.write_text(json.dumps(values), encoding="utf-8")
        tokenizer = MistralTokenizer.from_file(str(path), mode=mode)
        request = ChatCompletionRequest(model="any", messages=messages)  # type: ignore[arg-type]
        written = tokenizer.encode_chat_completion(request).text or ""
    # Pieces of SentencePiece; Tekken's text is plain. Emoji are four byte pieces.
    if "tekken" not in name:
        written = bytes_of(written.replace("▁", " "))
    return written


def bytes_of(pieces: str) -> str:
    """`<0x0A>` -> a line break."""
    out, rest = b"", pieces
    while rest:
        if rest.startswith("<0x"):
            out, rest = out + bytes([int(rest[3:5], 16)]), rest[6:]
        else:
            out, rest = out + rest[0].encode(), rest[1:]
    return out.decode()


if __name__ == "__main__":
    conversations = {
        title: [{"role": role, "content": content} for role, content in pairs]
        for title, pairs in CONVERSATIONS.items()
    }
    texts = {
        name: {title: text(name, messages) for title, messages in conversations.items()}
        for name in FILES
    }
    target = Path(__file__).with_name("golden") / "mistral-common.json"
    content = {"conversations": conversations, "texts": texts}
    target.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{target}\n")

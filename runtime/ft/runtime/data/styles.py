"""How an instruction becomes a prompt: the styles that Axolotl's instruction formats share, word for word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ft.runtime.data.row import Segment, SegmentsRow


@dataclass(frozen=True, slots=True)
class Style:
    """Texts with `{system}`, or `{instruction}` and `{input}`, to be filled in."""

    system: str
    with_input: str
    without_input: str

    def prompt(self, instruction: str, context: str, system: str = "") -> str:
        """The prompt; an empty `system` is left out, an empty `context` has its own text."""
        turn = self.with_input if context else self.without_input
        # `format` fills in once: braces in the data stay as they are.
        head = self.system.format(system=system) if system else ""
        return head + turn.format(instruction=instruction, input=context)


INSTRUCT: Final = Style(
    system="{system}\n\n",
    with_input="### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    without_input="### Instruction:\n{instruction}\n\n### Response:\n",
)
CHAT: Final = Style(
    system="SYSTEM: {system}\n",
    with_input="USER: {instruction}\n{input}\nASSISTANT:",
    without_input="USER: {instruction}\nASSISTANT:",
)
CHATML: Final = Style(
    system="<|im_start|>system\n{system}<|im_end|>\n",
    with_input="<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n",
    without_input="<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
)
PHI: Final = Style(
    system="<|system|>\n{system}<|end|>\n",
    # Without line breaks, unlike the other two: so it is in Axolotl.
    with_input="<|user|>\n{instruction}<|end|>{input}<|assistant|>",
    without_input="<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
)


def answered(prompt: str, response: str) -> SegmentsRow:
    """The prompt, then the response, which is trained and ends with EOS."""
    segments = (Segment(prompt, train=False), Segment(response, train=True))
    return SegmentsRow(segments, special_tokens=True, eos=True)

"""The borders of a conversation's turns from one render of it.

A template writes the same text around the contents of conversations with the same roles: their frame. It is found
once, on a conversation of made-up words, with the renders that `borders.Conversation` makes. A real one is rendered
once: if its text is exactly the frame with its contents in it, its borders are where the frame says. If it is not,
its template looks into contents, and every border is derived from renders of that conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ft.runtime.data.borders import Conversation, Turn
from ft.runtime.data.render import Renderer, is_plain
from ft.runtime.data.row import MessagesRow, RowError

MAX_FRAMES = 4096
"""Of one template. Data with more sequences of roles than that is no data of conversations."""

PERIOD = 2
"""user, assistant, user, assistant, …"""
LONGEST = 4 * PERIOD
"""Messages after which a conversation that goes on in the same two roles is written as before."""

LEFT, RIGHT = " \n", "\n "
LEFTS: dict[str, Callable[[str], str]] = {
    "": str.lstrip, "\n": lambda content: content.lstrip(" "), LEFT: str,
}  # fmt: skip
RIGHTS: dict[str, Callable[[str], str]] = {
    "": str.rstrip, "\n": lambda content: content.rstrip(" "), RIGHT: str,
}  # fmt: skip
"""What is left of white space on a side of a content -> what the template does to it."""


def _trim(left: str, right: str) -> Callable[[str], str]:
    return lambda content: LEFTS[left](RIGHTS[right](content))


TRIMS = {(left, right): _trim(left, right) for left in LEFTS for right in RIGHTS} | {
    (LEFT, RIGHT): str
}
"""The same of both sides; one object for each, so that frames can be compared."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A message's place in a frame."""

    before: str
    """What is written between the content before, in the order of the text, and this one's."""
    message: int
    """Whose content it is, counted from the first message; contents may be written in another order."""
    trim: Callable[[str], str]
    end: int
    """Characters from the end of the content to the end of its terminator."""
    blanks: int
    """Characters from `Turn.start` to the content."""
    lead: int
    """Characters from `Turn.lead` to the content."""


@dataclass(frozen=True, slots=True)
class Frame:
    slots: tuple[Slot, ...]
    after: str
    """What is written behind the last content."""

    def turns(self, contents: Sequence[str], text: str) -> list[Turn] | None:
        """Borders of all messages in `text`; None if it is not this frame with these contents."""
        turns = [Turn(0, 0, 0, 0, 0)] * len(contents)
        pieces: list[str] = []
        at = 0
        for slot in self.slots:
            content = slot.trim(contents[slot.message])
            start = at + len(slot.before)
            at = start + len(content)
            turns[slot.message] = Turn(
                start - slot.blanks, at, at + slot.end, start - slot.lead, start
            )
            pieces += slot.before, content
        return turns if "".join([*pieces, self.after]) == text else None


class Frames:
    """The frames of one template."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._known: dict[tuple[str, ...], Frame | None] = {}
        self._tried: set[tuple[str, ...]] = set()

    def place(self, row: MessagesRow) -> tuple[str, Callable[[int], Turn]]:
        """The text of a conversation, and what gives the borders of a message by its number from 0.

        Raises: RowError, also when a border is asked for that is not certain.
        """
        if not is_plain(row.messages, row.tools):
            conversation = Conversation(self._renderer, row)
            return conversation.text, conversation.turn
        text = self._renderer.plain(row.messages)
        roles = tuple(message["role"] for message in row.messages)
        frame = self._frame(roles)
        if frame is not None:
            turns = frame.turns([message["content"] for message in row.messages], text)
            if turns is not None and self._holds(roles, row, text, turns):
                return text, turns.__getitem__
        conversation = Conversation(self._renderer, row)
        return conversation.text, conversation.turn

    def _holds(
        self, roles: tuple[str, ...], row: MessagesRow, text: str, turns: Sequence[Turn]
    ) -> bool:
        """Whether the long way says the same of the first real conversation of its kind; from then on it is trusted."""
        base = _base(roles)
        if base in self._tried:
            return True
        self._tried.add(base)
        conversation = Conversation(self._renderer, row)
        try:
            same = conversation.text == text and all(
                conversation.turn(index) == turn for index, turn in enumerate(turns)
            )
        except RowError:
            same = False
        if not same:
            self._known[base] = self._known[roles] = None
        return same

    def _frame(self, roles: tuple[str, ...]) -> Frame | None:
        if roles in self._known:
            return self._known[roles]
        base = _base(roles)
        if base not in self._known:
            if len(self._known) >= MAX_FRAMES:
                return None
            self._known[base] = frame_of(base, self._renderer)
        found = self._known[base]
        if base != roles:
            found = found and _longer(found, len(roles) - len(base))
            if len(self._known) < MAX_FRAMES:
                self._known[roles] = found
        return found


def _base(roles: tuple[str, ...]) -> tuple[str, ...]:
    """The same conversation with fewer turns, if it ends in two roles that take turns for long enough."""
    last = len(roles) - 1
    start = last
    while start >= PERIOD and roles[start] == roles[start - PERIOD]:
        start -= 1
    repeated = last - start + 1 + (PERIOD - 1)
    extra = repeated - LONGEST
    if extra <= 0:
        return roles
    extra += extra % PERIOD
    return roles[: len(roles) - extra]


def _longer(frame: Frame, extra: int) -> Frame | None:
    """The frame with `extra` more messages; None if its inner turns are not alike, or not in their order."""
    slots = frame.slots
    if any(slot.message != index for index, slot in enumerate(slots)):
        return None
    # The last two may be written as the last ones are; the two before them must be like those before.
    inner, same = slots[-2 * PERIOD : -PERIOD], slots[-3 * PERIOD : -2 * PERIOD]
    if [replace(slot, message=0) for slot in inner] != [replace(slot, message=0) for slot in same]:
        return None
    longer = [*slots[:-PERIOD], *inner * (extra // PERIOD), *slots[-PERIOD:]]
    numbered = (replace(slot, message=index) for index, slot in enumerate(longer))
    return Frame(tuple(numbered), frame.after)


def frame_of(roles: Sequence[str], renderer: Renderer) -> Frame | None:
    """What the template writes around any contents of these roles; None if that is not certain."""
    words = [f"zq{index}x" for index in range(len(roles))]
    try:
        row = _conversation(roles, words)
        conversation = Conversation(renderer, row)
        text = renderer.plain(row.messages)
        padded = renderer.plain(
            _conversation(roles, [f"{LEFT}{word}{RIGHT}" for word in words]).messages
        )
        turns = [conversation.turn(index) for index in range(len(roles))]
    except RowError:
        return None
    if text != conversation.text or any(
        part.count(w) != 1 for w in words for part in (text, padded)
    ):
        return None
    order = sorted(range(len(words)), key=lambda index: text.index(words[index]))
    gaps, wide = _gaps(text, words, order), _gaps(padded, words, order)
    trims = _trims(gaps, wide)
    if gaps is None or trims is None:
        return None
    slots = []
    for place, index in enumerate(order):
        start = text.index(words[index])
        turn, content_end = turns[index], start + len(words[index])
        end = turn.end - content_end
        blanks, lead = start - turn.start, start - turn.lead
        if (turn.words, turn.content_end) != (start, content_end) or end > len(gaps[place + 1]):
            return None
        slots.append(Slot(gaps[place], index, trims[place], end, blanks, lead))
    return Frame(tuple(slots), gaps[-1])


def _conversation(roles: Sequence[str], contents: Sequence[str]) -> MessagesRow:
    pairs = zip(roles, contents, strict=True)
    return MessagesRow(tuple({"role": role, "content": content} for role, content in pairs), None)


def _gaps(text: str, words: Sequence[str], order: Sequence[int]) -> list[str] | None:
    """The text between the words, one piece more than words; None if they stand in another order."""
    gaps, at = [], 0
    for index in order:
        start = text.find(words[index], at)
        if start < 0:
            return None
        gaps.append(text[at:start])
        at = start + len(words[index])
    return [*gaps, text[at:]]


def _trims(
    gaps: Sequence[str] | None, wide: Sequence[str] | None
) -> list[Callable[[str], str]] | None:
    """How each content is trimmed, by what is left of white space around it; None if that is not certain."""
    if gaps is None or wide is None:
        return None
    edges = []
    for place, (gap, found) in enumerate(zip(gaps, wide, strict=True)):
        rights = [""] if place == 0 else [*RIGHTS]
        lefts = [""] if place == len(gaps) - 1 else [*LEFTS]
        fitting = [(r, left) for r in rights for left in lefts if r + gap + left == found]
        if len(fitting) != 1:
            return None
        edges.append(fitting[0])
    trims = []
    for place in range(len(gaps) - 1):
        left, right = edges[place][1], edges[place + 1][0]
        trims.append(TRIMS[left, right])
    return trims

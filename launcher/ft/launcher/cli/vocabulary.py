"""`ft schema`, `ft explain`: what may stand in a recipe."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ft.launcher.cli import console
from ft.launcher.cli.options import JsonOption
from ft.recipes.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ft.recipes.reference import Entry, Found, PluginEntry, RuleEntry

MAX_IN_FULL: Final = 3
"""Keys of the same name that are told in full."""
_RULE_ID: Final = re.compile("[Rr][0-9]+")
FACTS: Final = {
    "files": "the files that the recipe names",
    "machine": "the machine that the run will get",
    "model_config": "the model's config.json",
}


def known_words(incomplete: str) -> list[str]:
    """Keys and rules for Tab. Keys of a list come without `[]`, which means something to a shell."""
    from ft.recipes import reference

    keys = dict.fromkeys(reference.plain_key(key) for key in reference.entries())
    rules = reference.rules() if incomplete[:1] in {"R", "r"} else ()
    return [word for word in (*keys, *rules) if word.lower().startswith(incomplete.lower())]


WordsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="WORD",
        help="A key (learning_rate, cloud.gpu, datasets.path), a rule (R003), or a value (qlora).",
        autocompletion=known_words,
        show_default=False,
    ),
]
RulesOption = Annotated[bool, typer.Option("--rules", help="List all rules instead.")]
StatusOption = Annotated[
    bool, typer.Option("--status", help="List every key by what becomes of it.")
]


# -------------------------------------------------------------------------------------------- schema


def schema(*, status: StatusOption = False, json_: JsonOption = False) -> None:
    """Say which keys there are, and which run. --status lists them, --json is a JSON Schema for editors."""
    from ft.recipes import reference

    if json_:
        console.out_json(_status_json() if status else _json_schema())
        return
    for line in _table(reference.counts(), reference.totals()):
        console.out(line)
    if status:
        for line in _by_status(reference.entries().values()):
            console.out(line)
        console.hint("ft explain KEY  says what it does")
    else:
        console.hint("ft schema --status  lists the keys; ft explain KEY  says what one does")
        console.hint("ft schema --json > ft.schema.json  lets editors complete and check recipes")


def _json_schema() -> dict[str, Any]:
    from ft.recipes.schema.jsonschema import recipe_schema

    return recipe_schema()


def _status_json() -> dict[str, Any]:
    from ft.recipes import reference

    return {
        "counts": reference.totals(),
        "sections": reference.counts(),
        "keys": [entry.to_json() for entry in reference.entries().values()],
    }


def _table(counts: dict[str, dict[str, int]], totals: dict[str, int]) -> list[str]:
    """Keys by section and status; nested ones apart."""
    columns = list(next(iter(counts.values())))
    header = ["SECTION", *(column.upper() for column in columns)]
    rows = [*counts.items(), ("all", totals)]
    return console.table(
        header,
        [(name, *(_right(row[column], column) for column in columns)) for name, row in rows],
    )


def _right(number: int, header: str) -> str:
    return f"{number or '-':>{len(header)}}"


def _by_status(entries: Iterable[Entry]) -> Iterator[str]:
    """Top-level words by status, in alphabetical order."""
    from ft.recipes.reference import MEANING

    entries = [entry for entry in entries if not entry.is_nested]
    for status, meaning in MEANING.items():
        found = [entry for entry in entries if entry.status is status]
        partly = sorted(entry.key for entry in found if entry.runs is not None)
        yield ""
        yield f"{status} ({len(found)}): {meaning}"
        yield from _wrapped(", ".join(sorted(entry.key for entry in found)))
        if partly:
            yield "of those with values that are not runnable yet"
            yield from _wrapped(", ".join(partly))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        console.width(),
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


# ------------------------------------------------------------------------------------------- explain


def explain(
    words: WordsArgument = None, *, rules: RulesOption = False, json_: JsonOption = False
) -> None:
    """Say what a key, a rule or a value does."""
    from ft.recipes import reference

    with console.errors_as_json(json_):
        answers = _look_up(words or [], rules=rules)
    if rules:
        _list_rules(as_json=json_)
        return
    if json_:
        console.out_json([item for answer in answers for item in _explain_json(answer)])
        return
    blocks = [block for answer in answers for block in _blocks(answer)]
    for number, (head, *lines) in enumerate(blocks):
        if number:
            console.out()
        console.out(head, "bold")
        for line in lines:
            console.out(line)
    for answer in answers:
        if len(answer.keys) > MAX_IN_FULL:
            place = reference.plain_key(answer.keys[0].key)
            console.hint(f"ft explain {place}  says what it does there")


def _look_up(words: Sequence[str], *, rules: bool) -> list[Found]:
    """Raises: NotFoundError with what is like it if a word means nothing; UsageError if there is none."""
    from ft.recipes import reference

    if bool(words) is rules:
        raise UsageError("expected words to explain, or --rules", hint="ft explain learning_rate")
    answers = [reference.look_up(word) for word in words]
    unknown = [answer.word for answer in answers if not answer]
    if unknown:
        is_rule = all(_RULE_ID.fullmatch(word) for word in unknown)
        what = (
            "ft explain --rules  lists all rules"
            if is_rule
            else "ft schema --status  lists all keys"
        )
        raise NotFoundError("\n".join(map(_unknown, unknown)), hint=what)
    return answers


def _list_rules(*, as_json: bool) -> None:
    from ft.recipes import reference

    found = reference.rules().values()
    if as_json:
        console.out_json([rule.to_json() for rule in found])
        return
    for line in console.listing(("RULE", "WHY"), [(rule.id, rule.text) for rule in found]):
        console.out(line)
    console.hint("ft explain R003  names the keys that a rule is about")


def _unknown(word: str) -> str:
    from ft.recipes.reference import near_words

    *names, last = [f"`{name}`" for name in near_words(word)] or [""]
    near = f"{', '.join(names)} or {last}" if names else last
    meant = f" Did you mean {near}?" if near else ""
    return f"{word}: no key, rule or value of a recipe.{meant}"


def _explain_json(answer: Found) -> Iterator[dict[str, Any]]:
    from ft.recipes.reference import rules_about

    start = {"word": answer.word}
    for entry in answer.keys:
        rules = list(rules_about(entry.key))
        yield {**start, "kind": "key", **entry.to_json(), "rules": rules}
    if answer.rule:
        yield {**start, "kind": "rule", **answer.rule.to_json()}
    if answer.plugin:
        yield {**start, "kind": "plugin", **answer.plugin.to_json()}
    for entry in answer.values:
        status = str(entry.status_of(answer.word))
        yield {**start, "kind": "value", "key": entry.key, "status": status}


def _blocks(answer: Found) -> Iterator[list[str]]:
    """One block of lines for each thing that a word means; its first line is the heading."""
    if len(answer.keys) > MAX_IN_FULL:
        yield list(_several(answer))
    else:
        for entry in _with_targets(answer.keys):
            yield list(_key(entry))
    if answer.rule:
        yield list(_rule(answer.rule))
    if answer.plugin:
        yield list(_plugin(answer.plugin))
    if answer.values:
        yield list(_value(answer))


def _with_targets(keys: Sequence[Entry]) -> Iterator[Entry]:
    """`keys`, each older spelling with the key that it stands for."""
    from ft.recipes.reference import entries

    for entry in keys:
        yield entry
        yield from (entries()[target] for target in entry.target)


def _key(entry: Entry) -> Iterator[str]:
    from ft.recipes.reference import below, rules_about

    yield from _heading(entry.key, entry.text)
    kind = f"{entry.type} {entry.bounds}".strip()
    about = {
        "value": "" if entry.target else kind,
        "default": entry.default_text and f"`{entry.default_text}`",
        "status": _status(entry),
        "instead": entry.instead if not entry.is_key else "",
        "section": entry.section,
        "plugin": entry.plugin,
        "also read": ", ".join(entry.older),
        "keys below": ", ".join(below(entry.key)) if entry.is_key else "",
        "rules": ", ".join(rules_about(entry.key)),
    }
    for label, text in about.items():
        if text:
            yield from console.labelled(label, text)


def _status(entry: Entry) -> str:
    from ft.recipes.reference import MEANING, shown_value
    from ft.recipes.schema.base import Status

    if entry.status is Status.ACCEPTED:
        return f"accepted, without effect yet: {entry.instead}"
    if entry.status is Status.IMPLEMENTED and entry.runs is not None:
        runs = ", ".join(f"`{shown_value(value)}`" for value in entry.runs)
        return f"implemented; values that run today: {runs}"
    if entry.status is Status.RENAMED:
        second = "an older spelling, which `ft migrate` rewrites"
        return f"renamed: {second if entry.instead else 'a second name, as good as the first'}"
    return f"{entry.status}: {MEANING[entry.status]}"


def _several(answer: Found) -> Iterator[str]:
    yield f"{answer.word} stands in {len(answer.keys)} places:"
    for entry in answer.keys:
        yield f"  {entry.key}"


def _rule(rule: RuleEntry) -> Iterator[str]:
    yield from _heading(rule.id, rule.text)
    facts = [FACTS.get(need, need) for need in rule.needs]
    yield from console.labelled("needs", " and ".join(facts) or "the recipe alone")
    if rule.keys:
        yield from console.labelled("keys", ", ".join(rule.keys))


def _plugin(plugin: PluginEntry) -> Iterator[str]:
    full, *short = plugin.spellings
    yield from _heading(full, plugin.text)
    yield from console.labelled("in plugins", " or ".join([full, *short]))
    if plugin.keys:
        yield from console.labelled("keys", ", ".join(plugin.keys))


def _value(answer: Found) -> Iterator[str]:
    from ft.recipes.schema.base import Status

    yield f"{answer.word} is a value of"
    size = max(len(entry.key) for entry in answer.values)
    for entry in answer.values:
        runs = entry.status_of(answer.word) is Status.IMPLEMENTED
        yield f"  {entry.key:<{size}}  {'runs' if runs else 'valid, but not runnable yet'}"


def _heading(name: str, text: str) -> Iterator[str]:
    yield name
    yield from _wrapped(text)
    if text:
        yield ""

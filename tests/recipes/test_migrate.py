"""Older spellings are rewritten in the text; nothing else changes, and it means the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ft.recipes.errors import FtError, RecipeError
from ft.recipes.load import loads
from ft.recipes.migrate import Change, migrate
from ft.recipes.normalize import normalize
from ft.recipes.spelling import current_spelling
from ft.recipes.vocabulary import ATTENTION_FLAGS, RENAMED

TABLE = {
    "every renamed key": (
        "".join(f"{old}: 1\n" for old in RENAMED),
        "".join(f"{new}: 1\n" for new in RENAMED.values()),
    ),
    "another name is no older one": (
        "model_type: X\nmodel_config: {a: 1}\nmodel_revision: main\ndpo_beta: 0.1\n",
        "model_type: X\nmodel_config: {a: 1}\nmodel_revision: main\nrl_beta: 0.1\n",
    ),
    "comments, quotes, blank lines and what is not set stay": (
        "# top\n\n'dpo_beta':   0.1   # why\n\n  \n\"evaluation_strategy\": 'no'\nflex_attention:\ndebug: # x\n# end",
        "# top\n\n'rl_beta':   0.1   # why\n\n  \n\"eval_strategy\": 'no'\nflex_attention:\ndebug: # x\n# end",
    ),
    "an attention flag": (
        "a: 1\nflash_attention: true  # fast\n",
        "a: 1\nattn_implementation: flash_attention_2  # fast\n",
    ),
    "a flag that is off goes away, comments do not": (
        "a: 1\n# above\nflash_attention: false  # behind\n# below\nsdp_attention: no\nb: 2\n",
        "a: 1\n# above\n# behind\n# below\nb: 2\n",
    ),
    "of several flags the first in the table counts": (
        "flash_attention: true\nxformers_attention: yes\neager_attention: false\n",
        "attn_implementation: xformers\n",
    ),
    "a flag in another form": (
        "flash_attention: 'true' # x\nsdp_attention: 0\n",
        "attn_implementation: flash_attention_2 # x\n",
    ),
    "an empty text in a block is not set": (
        "dpo_beta: 1\nfsdp_config: {version: ''}\n"
        "datasets: [{path: x, message_field_role: '', message_field_content: c, "
        "message_property_mappings: {content: ''}}]\n",
        "rl_beta: 1\nfsdp_config: {version: ''}\n"
        "datasets: [{path: x, message_field_role: '', message_property_mappings: {content: c}}]\n",
    ),
    "a batch in another form": (
        "batch_size: '12'\nmicro_batch_size: 3.0\n",
        "gradient_accumulation_steps: 4\nmicro_batch_size: 3.0\n",
    ),
    "a flag beside what it means": (
        "flash_attention: true\nattn_implementation: flash_attention_2 # x\n",
        "attn_implementation: flash_attention_2 # x\n",
    ),
    "the key of today is there without a value": (
        "attn_implementation:  # x\nflash_attention: true\nrl_beta: ~\ndpo_beta: 0.2\n",
        "attn_implementation: flash_attention_2  # x\nrl_beta: 0.2\n",
    ),
    "a key twice that says the same both times": (
        "dpo_beta: 1\nseed: 1\nseed: 1\n",
        "rl_beta: 1\nseed: 1\nseed: 1\n",
    ),
    "the only key of a file": ("sdp_attention: false", ""),
    "the last line has no end": ("a: 1\ngc_steps: 5", "a: 1\ntorch_empty_cache_steps: 5\ngc_collect_steps: 5"),
    "one key becomes two": (
        "gc_steps: 10 # often\nb: 1\n",
        "torch_empty_cache_steps: 10\ngc_collect_steps: 10 # often\nb: 1\n",
    ),
    "one of the two is there": (
        "gc_collect_steps: 10\n'gc_steps': 10\n",
        "gc_collect_steps: 10\n'torch_empty_cache_steps': 10\n",
    ),
    "batch_size is divided": (
        "batch_size: 12  # rows\nmicro_batch_size: 3\n",
        "gradient_accumulation_steps: 4  # rows\nmicro_batch_size: 3\n",
    ),
    "batch_size alone": ("batch_size: 8\n", "gradient_accumulation_steps: 8\n"),
    "fsdp_config": (
        "fsdp_version: 2\nfsdp_config:\n  # one\n  fsdp_offload_params: true # c\n  version: 2\n  state_dict_type: X\n",
        "fsdp_version: 2\nfsdp_config:\n  # one\n  offload_params: true # c\n  fsdp_version: 2\n  state_dict_type: X\n",
    ),
    "fsdp_config says it twice": (
        "fsdp_config:\n  fsdp_offload_params: true\n  offload_params: true\n  fsdp_mixed_precision_policy: {a: 1}\n",
        "fsdp_config:\n  offload_params: true\n  mixed_precision_policy: {a: 1}\n",
    ),
    "flow": (
        "fsdp_config: {fsdp_offload_params: true, \"version\":2,offload_params: true}\n",
        "fsdp_config: {\"fsdp_version\":2,offload_params: true}\n",
    ),
    "the whole file in flow": (
        "{gc_steps: 5, flash_attention: false, dpo_beta: 1, sdp_attention: true, eager_attention: true}",
        "{torch_empty_cache_steps: 5, gc_collect_steps: 5, rl_beta: 1, attn_implementation: sdpa}",
    ),
    "flow over several lines": (
        "{\n  flash_attention: false, # off\n  'dpo_beta': 1,\n  sdp_attention: no,\n  a: 1,\n  sage_attention: no\n}",
        "{\n  # off\n  'rl_beta': 1,\n  a: 1,\n}",
    ),
    "flow without anything": ("<<: {flash_attention: false}\na: 1\n", "<<: {}\na: 1\n"),
    "data sets": (
        """\
datasets:
  - path: a
    message_field_role: from  # who
    # what
    message_field_content: value # what
    type: chat_template
  - message_field_content: value
    path: b

    message_field_role: from
test_datasets:
- message_field_role: r
  path: c
""",
        """\
datasets:
  - path: a
    message_property_mappings:
      role: from  # who
    # what
      content: value # what
    type: chat_template
  - message_property_mappings:
      role: from
      content: value
    path: b

test_datasets:
- message_property_mappings:
    role: r
  path: c
""",
    ),
    "data sets with a mapping that is there": (
        """\
datasets:
  - message_field_role: from
    path: a
    message_property_mappings:
      # ours
      content: value
  - message_field_role: from # who
    message_field_content: value
    message_property_mappings: {x: y}
  - message_field_role: from
    message_field_content: "a, b"
    message_property_mappings: {}
  - message_field_role: from
    message_field_content: a, b
    message_property_mappings:
  - path: e
    message_property_mappings: {role: from}
    message_field_role: from
  - message_property_mappings:
      content:
      role: from
    message_field_content: value
""",
        """\
datasets:
  - path: a
    message_property_mappings:
      # ours
      role: from
      content: value
  - # who
    message_property_mappings: {role: from, content: value, x: y}
  - message_property_mappings: {role: from, content: "a, b"}
  - message_property_mappings: {role: from, content: "a, b"}
  - path: e
    message_property_mappings: {role: from}
  - message_property_mappings:
      content: value
      role: from
""",
    ),
    "data sets in flow": (
        "datasets: [{path: a, message_field_role: from, message_field_content: value}, "
        "{'message_field_role': 'r', path: b}]\n"
        "pretraining_dataset: {message_field_content: c}\n",
        "datasets: [{path: a, message_property_mappings: {role: from, content: value}}, "
        "{'message_property_mappings': {'role': 'r'}, path: b}]\n"
        "pretraining_dataset: {message_property_mappings: {content: c}}\n",
    ),
    "what is written once is rewritten once": (
        """\
<<: &base {dpo_beta: &half 0.5, flash_attention: true}
datasets:
  - &a
    path: a
    message_field_role: from
  - <<: *a
    path: b
  - *a
gc_steps: *half
fsdp_config: &f
  version: 2
""",
        """\
<<: &base {rl_beta: &half 0.5, attn_implementation: flash_attention_2}
datasets:
  - &a
    path: a
    message_property_mappings:
      role: from
  - <<: *a
    path: b
  - *a
torch_empty_cache_steps: *half
gc_collect_steps: *half
fsdp_config: &f
  fsdp_version: 2
""",
    ),
    "an anchor is copied without its name": (
        "gc_steps: &n 5\nsave_steps: *n\n",
        "torch_empty_cache_steps: 5\ngc_collect_steps: &n 5\nsave_steps: *n\n",
    ),
    "other ends of lines, and letters of many bytes": (
        "\ufeff# 😀\r\ngc_steps: 5\r\nflash_attention: false\r\ndpo_beta: 1\u2028a: é\x85evaluation_strategy: no",
        "\ufeff# 😀\r\ntorch_empty_cache_steps: 5\r\ngc_collect_steps: 5\r\nrl_beta: 1\u2028a: é\x85eval_strategy: no",
    ),
    "text that only looks like a key": (
        "a: |\n  flash_attention: true\n  # dpo_beta: 1\nb: 'gc_steps: 5'\n# version:\nc: {dpo_beta: 1}\ndpo_beta: 2\n",
        "a: |\n  flash_attention: true\n  # dpo_beta: 1\nb: 'gc_steps: 5'\n# version:\nc: {dpo_beta: 1}\nrl_beta: 2\n",
    ),
    "values in more than one line": (
        "flash_attention:\n  true\ndpo_beta:\n  # c\n  0.1\ndataset_processes: >\n  a\n\n# end\n",
        "attn_implementation:\n  flash_attention_2\nrl_beta:\n  # c\n  0.1\ndataset_num_proc: >\n  a\n\n# end\n",
    ),
    "nothing to do": (
        "# a\nmodel_type: X\nflash_attention:\nversion: 3\nbatch_size: ''\nfsdp_config:\ndatasets: x\n",
        "# a\nmodel_type: X\nflash_attention:\nversion: 3\nbatch_size: ''\nfsdp_config:\ndatasets: x\n",
    ),
    "explicit keys": ("? dpo_beta\n: 0.1\n", "? rl_beta\n: 0.1\n"),
    "an empty file": ("", ""),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), TABLE.values(), ids=TABLE)
def test_the_text_becomes(before: str, after: str) -> None:
    assert migrate(before, "r.yml").text == after
    assert_same_meaning(before, after)


def assert_same_meaning(before: str, after: str) -> None:
    """Also that nothing is left to do."""
    old, new = (loads(text.removeprefix("\ufeff"), source="r.yml") for text in (before, after))
    assert current_spelling(new).values == current_spelling(old).values
    assert normalize(new).flat == normalize(old).flat
    assert [str(p) for p in normalize(new).problems if "ft migrate" in p.message] == []
    again = migrate(after, "r.yml")
    assert (again.text, again.changes) == (after, ())


def test_changes_say_what_stood_where() -> None:
    text = """\
# one
flash_attention: true
sdp_attention: false  # c
datasets: [{message_field_role: from}]
gc_steps: 3
micro_batch_size: 2
batch_size: 4
rl_beta: 0.1
dpo_beta: 0.1
fsdp_config: {version: 2}
"""
    assert migrate(text, "r.yml").changes == (
        Change(2, "flash_attention: true", "attn_implementation: flash_attention_2"),
        Change(3, "sdp_attention: false", ""),
        Change(4, "message_field_role: from", "message_property_mappings.role: from"),
        Change(5, "gc_steps: 3", "torch_empty_cache_steps: 3, gc_collect_steps: 3"),
        Change(7, "batch_size: 4", "gradient_accumulation_steps: 2"),
        Change(9, "dpo_beta: 0.1", ""),
        Change(10, "version: 2", "fsdp_version: 2"),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dpo_beta: 1\na: 1\nrl_beta: 2\n", "r.yml:1: dpo_beta: is the older spelling of `rl_beta`, which says 2."),
        ("dpo_beta: 1\ndpo_beta: 1\n", "r.yml:2: dpo_beta: the key stands twice and says the same"),
        ("dpo_beta: 1\ndpo_beta: 2\n", "r.yml:2: dpo_beta: the key stands twice; first in line 1."),
        ("flash_attention: true\nattn_implementation: sdpa\n", "r.yml:1: flash_attention: is the older spelling"),
        ("batch_size: 7\nmicro_batch_size: 2\n", "r.yml:1: batch_size: 7 is not a multiple of micro_batch_size 2"),
        ("batch_size: 8\nmicro_batch_size: x\n", "r.yml:2: micro_batch_size: expected a whole number"),
        ("batch_size: 8\ngradient_accumulation_steps: 8\n", "r.yml:1: batch_size: stands beside"),
        ("fsdp_config: {version: 1, fsdp_version: 2}\n", "r.yml:1: fsdp_config.version: is the older spelling"),
        (
            "datasets: [{message_field_role: a, message_property_mappings: {role: b}}]\n",
            "r.yml:1: datasets.0.message_field_role: is the older spelling",
        ),
        ("dpo_beta: [\n", "r.yml:2: not YAML"),
        ("- dpo_beta: 1\n", "r.yml:1: expected `key: value` lines"),
        ("dpo_beta: 1\nseed: !!python/name:os.system\n", "r.yml:2: seed: tag"),
    ],
)  # fmt: skip
def test_what_is_unclear_is_refused(text: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        migrate(text, "r.yml")
    assert str(caught.value.problems[0]).startswith(problem)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("? flash_attention\n: false\n", "r.yml:1: cannot be rewritten safely: something else stands before it"),
        ("flash_attention: # why\n  false\n", "r.yml:1: cannot be rewritten safely: a comment stands between"),
        ("a: &k dpo_beta\n*k : 1\n", "r.yml:1: dpo_beta cannot be rewritten safely: the key is written in a way"),
        ("sdp_attention: &no false\nbf16: *no\n", "r.yml cannot be rewritten safely: it would no longer be a recipe"),
        ("? &k dpo_beta\n: 1\na: *k\n", "r.yml cannot be rewritten safely: it would mean something else"),
        # The mapping of the second data set would hide that of the first.
        (
            "datasets:\n- &a {message_field_role: r}\n- <<: *a\n  message_property_mappings: {content: c}\n",
            "r.yml cannot be rewritten safely: it would mean something else",
        ),
        (
            "datasets:\n- message_property_mappings: &m {x: y}\n"
            "- message_property_mappings: *m\n  message_field_role: r\n",
            "r.yml:3: cannot be rewritten safely: other data sets share its message_property_mappings",
        ),
        (
            "extends: base.yml\nflash_attention: false\n",
            "r.yml:2: flash_attention cannot be rewritten safely: flash_attention may decide about a flag of the file",
        ),
        (
            "extends: base.yml\nbatch_size: 8\n",
            "r.yml:2: batch_size cannot be rewritten safely: batch_size depends on micro_batch_size",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_edited_is_refused_with_a_way_out(text: str, message: str) -> None:
    with pytest.raises(FtError) as caught:
        migrate(text, "r.yml")
    assert caught.value.message.startswith(message)
    assert caught.value.hint


def test_a_file_that_extends_another_is_rewritten_by_itself() -> None:
    before = "extends: nowhere.yml\nflash_attention: true\nbatch_size: 8\nmicro_batch_size: 4\n"
    after = (
        "extends: nowhere.yml\nattn_implementation: flash_attention_2\n"
        "gradient_accumulation_steps: 2\nmicro_batch_size: 4\n"
    )
    assert migrate(before, "r.yml").text == after


def test_a_word_that_stands_for_nothing_is_left_as_it_is() -> None:
    before = "fsdp_config:\n  fsdp_offload_parms: true\n  fsdp_offload_params: true\n"
    after = "fsdp_config:\n  fsdp_offload_parms: true\n  offload_params: true\n"
    assert migrate(before, "r.yml").text == after


def test_other_errors_do_not_keep_a_recipe_from_being_rewritten() -> None:
    assert migrate("lora_rank: 1\ndpo_beta: x\n", "r.yml").text == "lora_rank: 1\nrl_beta: x\n"


def test_the_public_recipes_of_axolotl(repo: Path) -> None:
    folder = repo.parent / "shared/axolotl/examples"
    paths = sorted(path for path in folder.rglob("*.y*ml"))
    if not paths:
        pytest.skip(f"{folder} is not there: Axolotl's examples are no part of this repository")
    changed = set()
    for path in paths:
        text = path.read_bytes().decode()
        migrated = migrate(text, str(path))
        assert_same_meaning(text, migrated.text)
        assert_other_lines_stay(text, migrated.text)
        if migrated.changes:
            changed.add(path.name)
    assert {"qlora-fsdp-405b.yaml", "falcon-e-3b-ft.yaml"} <= changed
    assert len(changed) < len(paths)


OLD_WORDS = "|".join(
    [*RENAMED, *ATTENTION_FLAGS, "gc_steps", "batch_size", "fsdp_", "version", "message_field_"]
)


def assert_other_lines_stay(before: str, after: str) -> None:
    """Lines without an older key are there, in their order and byte for byte; and so is every comment."""
    rest = iter(after.splitlines(keepends=True))
    for line in before.splitlines(keepends=True):
        if not re.search(OLD_WORDS, line):
            assert line in rest, line
    assert re.findall(r"#.*", after) == re.findall(r"#.*", before)


# --------------------------------------------------------------------------------------- properties

Tree = dict[str, Any]
"""Key -> text of a value, or mapping, or list of mappings."""

SCALARS = st.sampled_from(["1", "0.5", "true", "no", "'x: y'", '"ü"', "text", "", "~", "[1, 2]"])
WORDS = st.sampled_from(["from", "value", "'role'", '"with, comma"', "two words"])
UNSET = st.sampled_from(["", "~", "null"])


def either(draw: st.DrawFn, *trees: Tree) -> Tree:
    return dict(draw(st.sampled_from([{}, *trees])))


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """A recipe with older keys of every kind; they never disagree with those of today."""
    names = st.sampled_from(["seed", "lora_r", "unknown", "adapter", "output_dir"])
    tree: Tree = draw(st.dictionaries(names, SCALARS))
    for old in sorted(draw(st.sets(st.sampled_from(sorted(RENAMED)), max_size=3))):
        tree[old] = draw(SCALARS)
        tree |= either(draw, {RENAMED[old]: tree[old]}, {RENAMED[old]: draw(UNSET)})
    for flag in draw(st.sets(st.sampled_from(sorted(ATTENTION_FLAGS)))):
        tree[flag] = draw(st.sampled_from(["true", "false", "yes", ""]))
    tree |= either(draw, {"attn_implementation": draw(UNSET)})
    tree |= either(draw, {"gc_steps": "5"}, {"gc_steps": "5", "gc_collect_steps": "5"})
    micro, times = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    batch = {"batch_size": str(micro * times), "micro_batch_size": str(micro)}
    tree |= either(draw, batch, batch | {"gradient_accumulation_steps": draw(UNSET)})
    for key in draw(st.sets(st.sampled_from(["fsdp_offload_params", "version", "fsdp_version"]))):
        tree.setdefault("fsdp_config", {})[key] = draw(st.sampled_from(["1", "~"]))
    tree |= either(draw, {"datasets": draw(st.lists(data_sets(), min_size=1, max_size=3))})
    order = draw(st.permutations(sorted(tree)))
    return {key: tree[key] for key in order}


@st.composite
def data_sets(draw: st.DrawFn) -> Tree:
    tree: Tree = {"path": "x"} | either(draw, {"type": "chat_template"}, {"split": "train"})
    mapping = either(draw, {"system": "s"}, {"role": "~"}, {"x": "y", "content": ""})
    for sub in draw(st.sets(st.sampled_from(["role", "content"]))):
        tree[f"message_field_{sub}"] = draw(WORDS)
        if draw(st.integers(0, 5)) == 0:
            mapping[sub] = tree[f"message_field_{sub}"]
    tree |= either(draw, {"message_property_mappings": mapping or draw(UNSET)})
    order = draw(st.permutations(sorted(tree)))
    return {key: tree[key] for key in order}


def in_flow(tree: Any) -> str:
    if isinstance(tree, dict):
        return f"{{{', '.join(f'{key}: {in_flow(value)}' for key, value in tree.items())}}}"
    return f"[{', '.join(map(in_flow, tree))}]" if isinstance(tree, list) else tree


def in_block(draw: st.DrawFn, tree: Tree, indent: str) -> list[str]:
    """Lines of a mapping, with comments and empty lines; inner ones are blocks or flow."""
    lines = []
    for key, value in tree.items():
        quote = draw(st.sampled_from(["", "", "'", '"']))
        comment = draw(st.sampled_from(["", "", "  # why", " # ü: 'x'", "   "]))
        lines += draw(st.sampled_from([[], [], [""], [f"{indent}# above"], ["# left", " "]]))
        if not isinstance(value, str) and value and draw(st.booleans()):
            lines.append(f"{indent}{quote}{key}{quote}:{comment}")
            lines += inner_block(draw, value, indent)
        else:
            gap = draw(st.sampled_from([" ", "   "]))
            lines.append(f"{indent}{quote}{key}{quote}:{gap}{in_flow(value)}{comment}")
    return lines


def inner_block(draw: st.DrawFn, value: Any, indent: str) -> list[str]:
    if isinstance(value, dict):
        return in_block(draw, value, f"{indent}  ")
    lines: list[str] = []
    for item in value:
        block = in_block(draw, item, f"{indent}  ")
        first = next(i for i, line in enumerate(block) if line.strip() and line.strip()[0] != "#")
        block[first] = f"{indent}- {block[first].removeprefix(f'{indent}  ')}"
        lines += block
    return lines


@st.composite
def recipes(draw: st.DrawFn) -> str:
    tree = draw(trees())
    kind = draw(st.sampled_from(["block", "block", "flow", "flow lines"]))
    end = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    if kind == "block":
        return end.join([*in_block(draw, tree, ""), draw(st.sampled_from(["", "# end"]))])
    if kind == "flow":
        return in_flow(tree)
    lines = [f"  {key}: {in_flow(value)}, # {key[:2]}" for key, value in tree.items()]
    return end.join(["{", *lines, "}", ""])


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(recipes())
def test_any_recipe_keeps_its_meaning_and_its_other_lines(text: str) -> None:
    migrated = migrate(text, "r.yml")
    assert_same_meaning(text, migrated.text)
    assert_other_lines_stay_but_filled(text, migrated.text)
    if not migrated.changes:
        assert migrated.text == text


def assert_other_lines_stay_but_filled(before: str, after: str) -> None:
    """A key of today that was not set has a value now, and a data set's second key may stand behind its dash."""
    today = [
        *RENAMED.values(),
        "attn_implementation",
        "gradient_accumulation_steps",
        "role",
        "content",
    ]
    filled = rf"({'|'.join([*today, 'message_property_mappings'])})['\"]?:"
    old, new = (
        "".join(line for line in text.splitlines(keepends=True) if not re.search(filled, line))
        for text in (before, after)
    )
    assert re.findall(r"#.*", after) == re.findall(r"#.*", before)
    rest = iter(line.lstrip(" -") for line in new.splitlines(keepends=True))
    for line in old.splitlines(keepends=True):
        if not re.search(OLD_WORDS, line):
            assert line.lstrip(" -") in rest, line


PIECES = [
    *("{", "}", "[", "]", ",", ", ", ": ", ": ", " # c", "- ", "\n", "\n", "\n  ", "\r\n", "&a ", "*a", "? ", "'"),
    *("flash_attention", "sdp_attention", "gc_steps", "dpo_beta", "rl_beta", "batch_size", "version"),
    *("datasets", "fsdp_config", "message_field_role", "message_property_mappings", "<<", "true", "false", "5"),
]  # fmt: skip


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_any_text_is_rewritten_or_refused(text: str) -> None:
    try:
        migrated = migrate(text, "r.yml")
    except FtError:
        return
    assert_same_meaning(text, migrated.text)

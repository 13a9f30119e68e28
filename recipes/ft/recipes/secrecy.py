"""What gives a secret away: the name of a variable, or the look of a value. A message never repeats such a value."""

from __future__ import annotations

import re
from typing import Final

_NAME: Final = re.compile(
    r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?(_|$)", re.IGNORECASE
)
_VALUE: Final = re.compile(
    r"""
    hf_[A-Za-z0-9]{16,}                      # Hugging Face
    | (sk|ak|as|pk|rk)-[A-Za-z0-9_-]{16,}    # OpenAI, Anthropic, Modal
    | (ghp|gho|ghs|ghu)_[A-Za-z0-9]{16,} | github_pat_\w{16,} | glpat-[\w-]{16,}
    | (AKIA|ASIA)[A-Z0-9]{16}                # AWS
    | xox[abprs]-[\w-]{10,}                  # Slack
    | eyJ[\w-]{10,}\.[\w.-]+                 # a JSON Web Token
    | -----BEGIN\ [\s\S]*
    """,
    re.VERBOSE,
)
_HEX: Final = re.compile(r"[0-9a-fA-F]{32,}")
"""The keys of Weights & Biases, but commits and checksums as well."""


def is_named_like_a_secret(name: str) -> bool:
    """Whether a variable of this name is likely to hold a secret: `HF_TOKEN`, `AWS_SECRET_ACCESS_KEY`."""
    return _NAME.search(name) is not None


def looks_like_a_secret(value: str) -> bool:
    """Whether `value` has the form of a token or a key that a well-known service gives out."""
    return _VALUE.fullmatch(value.strip()) is not None


def is_rather_a_value(name: str) -> bool:
    """Whether what should be the name of a secret is rather the secret."""
    return looks_like_a_secret(name) or _HEX.fullmatch(name) is not None

"""What gives a secret away: the name of a variable, or the look of a value. A message never repeats such a value."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Final

_NAME: Final = re.compile(
    r"(^|_)(TOKEN|KEYS?|SECRETS?|PASSWORDS?|PASSWD|CREDENTIALS?)(_|$)(?!(.*_)?(PATH|FILE|DIR)$)",
    re.IGNORECASE,
)
"""`MAX_TOKENS` is a number, `HF_TOKEN_PATH` a place."""
_VALUE: Final = re.compile(
    r"""
    hf_[A-Za-z0-9]{16,}                      # Hugging Face
    # OpenAI, Anthropic, Modal; without a digit or a capital it is the name of a package.
    | (sk|ak|as|pk|rk)-(?=[a-z_-]*[0-9A-Z])[A-Za-z0-9_-]{16,}
    | (ghp|gho|ghs|ghu)_[A-Za-z0-9]{16,} | github_pat_\w{16,} | glpat-[\w-]{16,}
    | (AKIA|ASIA)[A-Z0-9]{16}                # AWS
    | xox[abprs]-[\w-]{10,}                  # Slack
    | eyJ[\w-]{10,}\.[\w.-]+                 # a JSON Web Token
    | -----BEGIN\ [\s\S]*
    """,
    re.VERBOSE,
)
_PLAIN: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?|true|false|yes|no|on|off", re.IGNORECASE)
_FILES: Final = (
    *(".env", ".env.*", "*.env", ".netrc", "_netrc", ".pypirc", ".git-credentials", "credentials*"),
    *("*.pem", "*.p12", "*.pfx", "*.key", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
)
_TEMPLATES: Final = (".env.example", ".env.sample", ".env.template")
"""What is written in place of a file of secrets, to be shared."""
_HEX: Final = re.compile(r"[0-9a-fA-F]{32,}")
"""The keys of Weights & Biases, but commits and checksums as well."""


def is_named_like_a_secret(name: str) -> bool:
    """Whether a variable of this name is likely to hold a secret: `HF_TOKEN`, `AWS_SECRET_ACCESS_KEY`."""
    return _NAME.search(name) is not None


def looks_like_a_secret(value: str) -> bool:
    """Whether `value` has the form of a token or a key that a well-known service gives out."""
    return _VALUE.fullmatch(value.strip()) is not None


def holds_a_secret(text: str) -> bool:
    """Whether a word of `text` looks like a secret."""
    return "-----BEGIN " in text or any(map(looks_like_a_secret, re.split(r"[^\w.-]+", text)))


def is_plain(value: str) -> bool:
    """Whether nothing secret can be said with `value`, whatever its variable is called.

    That is nothing, a number, a switch, a path, or what a shell puts there later.
    """
    bare = value.strip("\"'")
    return not bare or bare[0] in "/$`" or _PLAIN.fullmatch(bare) is not None


def names_a_secret(text: str) -> bool:
    """Whether `text` is the name of a secret that can be shown: neither an assignment nor a value."""
    return re.fullmatch(r"[A-Za-z0-9._-]{1,63}", text) is not None and not is_rather_a_value(text)


def is_rather_a_value(name: str) -> bool:
    """Whether what should be the name of a secret is rather the secret."""
    return looks_like_a_secret(name) or _HEX.fullmatch(name) is not None


def is_file_of_secrets(name: str) -> bool:
    """Whether a file of this name is likely to hold secrets: `.env`, `id_rsa`, `server.pem`."""
    lower = name.lower()
    return lower not in _TEMPLATES and any(fnmatchcase(lower, pattern) for pattern in _FILES)

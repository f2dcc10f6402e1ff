"""Secrets stay out of everything that is logged or saved: which keys and values look like one.

A key is secret by its words: `api_key`, `hf_token`, `clientSecret`, not `max_new_tokens` or `token_loss`.
A value is secret where an environment variable with a secret name holds it, or where it is a URL with a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

REDACTED = "<redacted>"
_ANYWHERE = {"secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials", "apikey"}
_AT_THE_END = {"key", "keys", "token"}  # api_key and hf_token, but neither key_bits nor token_loss
_VOCABULARY = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "image", "per", "stop", "new", "special"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_URL_PASSWORD = re.compile(r"\b[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@", re.IGNORECASE)
_SHORTEST_SECRET = 8  # shorter values of the environment are too common to hunt for


def is_secret_key(key: str) -> bool:
    words = [w.lower() for w in _WORD.findall(key)]
    if not words:
        return False
    if _ANYWHERE & set(words):
        return True
    return words[-1] in _AT_THE_END and not (len(words) > 1 and words[-2] in _VOCABULARY)


def holds_secret(text: str) -> bool:
    return bool(_URL_PASSWORD.search(text)) or any(secret in text for secret in environment_secrets())


def redacted(value: object, *, key: str = "") -> object:
    """The same tree of dicts and lists, every secret replaced. Numbers, null and empty texts under a secret key stay
    only if they say nothing: null and "" do."""
    if isinstance(value, Mapping):
        return {k: redacted(v, key=str(k) if not is_secret_key(key) else key) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(v, key=key) for v in value]
    if value is None or value == "":
        return value
    if is_secret_key(key):
        return REDACTED
    return redacted_text(value) if isinstance(value, str) else value


def redacted_text(text: str) -> str:
    """A text, such as a command-line argument, with the secrets in it replaced."""
    key, equals, value = text.partition("=")
    if equals and value and is_secret_key(re.split(r"[.@/]", key)[-1]):
        return f"{key}={REDACTED}"
    return hidden(text)


def hidden(text: str) -> str:
    """Prose, such as a model's response, with the environment's secrets and the passwords of URLs replaced."""
    for secret in environment_secrets():
        text = text.replace(secret, REDACTED)
    return _URL_PASSWORD.sub(lambda m: m.group().split("://")[0] + f"://{REDACTED}@", text)


def environment_secrets() -> list[str]:
    """Longest first, so that a secret which contains another is replaced whole."""
    found = {v for k, v in os.environ.items() if is_secret_key(k) and len(v) >= _SHORTEST_SECRET}
    return sorted(found, key=len, reverse=True)

"""Removal of secrets from messages, logs and tracked values."""

import os
import re
from collections.abc import Mapping
from typing import Any

_KEY_PAIR = re.compile(r"(?P<scheme>(?:s3a?|gs|gcs)://)[^\s@/:]*:[^\s@]*@", re.IGNORECASE)
"""Key and secret before the bucket; an AWS secret may hold slashes, and a bucket has no port."""
_PASSWORD = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]{0,30}://)[^\s@/:]*:(?!\d+[/?#])[^\s@]*@(?:[^\s@/]*@)*")
"""User and password before the host; a port is digits and a slash."""
_TOKEN = re.compile(r"(?P<scheme>(?:https?|s3a?|gs|gcs|ftps?|hf)://)[^\s/?#]+@", re.IGNORECASE)
"""A bare token before the host; `container@account` of Azure and `user@host` of ssh are not tokens."""
_WEB_QUERY = re.compile(r"(?P<url>https?://[^\s?#'\"]*)[?#][^\s'\"]*[^\s'\",.:;)>\]}]", re.IGNORECASE)
"""A signed URL keeps its signature in the query, an OAuth token may stand in the fragment."""
_QUERY = re.compile(r"(?P<url>[A-Za-z][\w+.-]{0,30}://[^\s?'\"]*)\?[\w.%-]+=[^\s'\"]*")
"""Elsewhere `?` may also be part of a glob, as in `year=202?/month=*`."""
_SIGNATURE = re.compile(
    r"(?P<name>(?<![\w-])(?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig"
    r"|access_token)=)[^\s&'\"]+",
    re.IGNORECASE,
)
"""Parts of a signed query that stand without their URL, as in a server's answer."""
_SECRET_NAME = re.compile(
    r"(?:^|[^a-z])(?:(?:api|access|private)?keys?|token|(?:access|auth)token|secrets?|passw(?:or)?ds?|credentials?)(?:$|[^a-z])"
)
"""Whole words only: `tokenizer`, `num_tokens` and `max_new_tokens` are no secrets."""
_NO_SECRETS = frozenset({"begin_token", "end_token", "mask_token", "query_key_norm"})
"""Settings of ours whose names only sound like one: a word of the vocabulary, and attention's keys."""
_SHORTEST_SECRET = 8


def redact(text: str) -> str:
    """Return `text` with the credentials of every URL in it replaced by `***`."""
    for credentials in (_KEY_PAIR, _PASSWORD, _TOKEN):
        text = credentials.sub(r"\g<scheme>***@", text)
    for query in (_WEB_QUERY, _QUERY):
        text = query.sub(r"\g<url>?***", text)
    return _SIGNATURE.sub(r"\g<name>***", text)


def without_query(url: str) -> str:
    """Return `url` without the query that a signed URL keeps its signature in."""
    return _QUERY.sub(r"\g<url>", _WEB_QUERY.sub(r"\g<url>", url))


def has_credentials(url: str) -> bool:
    """Return whether `url` holds a user's password or token before the host (a signed query does not count)."""
    return any(credentials.search(url) for credentials in (_KEY_PAIR, _PASSWORD, _TOKEN))


def is_secret_name(name: str) -> bool:
    """Return whether a setting or an environment variable called `name` would hold a secret."""
    return name not in _NO_SECRETS and bool(_SECRET_NAME.search(name.lower()))


def without_secrets(value: Any) -> Any:
    """Return plain data without secrets, which must not be tracked.

    Settings whose name is that of a secret are left out; in texts, the credentials of URLs and the values of secret
    environment variables are replaced by `***`.
    """
    known = [text for name, text in os.environ.items() if is_secret_name(name) and len(text) >= _SHORTEST_SECRET]
    return _scrubbed(value, known)


def _scrubbed(value: Any, known: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _scrubbed(item, known) for key, item in value.items() if not is_secret_name(str(key))}
    if isinstance(value, list | tuple):
        return [_scrubbed(item, known) for item in value]
    if isinstance(value, str):
        for secret in known:
            value = value.replace(secret, "***")
        return redact(value)
    return value

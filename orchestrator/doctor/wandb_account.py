"""What Weights & Biases will do with a run: the mode, the key, and whether the service can be reached."""

import urllib.error
import urllib.request

from orchestrator.configuration.groups import TrackingConfig
from orchestrator.doctor.findings import Finding
from orchestrator.runs.tracking import api_url, key_place, resolve_mode
from orchestrator.storage.redaction import redact

ANSWER_SECONDS = 5
_KEY = "wandb login, or put the key into WANDB_API_KEY"


def wandb_account(config: TrackingConfig) -> Finding:
    """Report the resulting mode; if there is a key, check whether its service answers."""
    mode, key_source = resolve_mode(config), key_place()
    if mode == "disabled":
        return Finding("ok", "disabled: nothing is tracked")
    if key_source is None:
        if mode == "online":
            return Finding("warning", "no key: runs start online, fail and are tracked offline", _KEY)
        return Finding("ok", "offline, because there is no key; wandb sync uploads later")
    url = api_url()
    if not _answers(url):
        text = f"{mode}, key from {key_source}, but {redact(url)} does not answer"
        remedy = "check the network and HTTPS_PROXY, or set tracking.mode=offline"
        return Finding("warning" if mode == "online" else "ok", text, remedy if mode == "online" else "")
    return Finding("ok", f"{mode}, key from {key_source}, {redact(url)} answers")


def _answers(url: str) -> bool:
    """Return whether a service answers HTTP there, with any status; the key is not sent to it."""
    try:
        urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close()  # noqa: S310  # the user's own address, or W&B's
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True

"""What would be different on the cluster: settings with secrets, places lost with the job, files that stay here."""

import glob
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from modules.config import Config
from orchestrator.configuration.schema import shown
from orchestrator.errors import ConfigError
from orchestrator.storage.access import is_local, path_of
from orchestrator.storage.redaction import redact, without_secrets
from orchestrator.submission.package import Options, Project, is_never_sent
from orchestrator.submission.request import Request, inputs_of

_OUTPUTS = ("output", "to")


def check(
    request: Request, stages: Mapping[str, Config], project: Project | None, options: Options | None
) -> list[str]:
    """Check what would be different on the cluster from here, and return what to say of it.

    Args:
        stages: The configurations of a pipeline's stages, by what stands before their settings in messages.
        project: What is sent of this folder.
        options: The user's folder of options.

    Raises:
        ConfigError: a setting holds a secret, or a path that is not there on the cluster, or that is lost with the job.
    """
    files = project.files if project else ()
    mistakes, notes = list(_secrets(request.overrides, options)), list[str]()
    configs = [("", config) for config in request.configs] + list(stages.items())
    for where, config in configs:
        mistakes += [] if where else _lost(config)  # a pipeline says itself where results of its stages lie
        mistakes += [where + line for line in _not_sent(config, files)]
        notes += [where + line for line in _only_here(config, project)]
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    return list(dict.fromkeys(notes))


def _secrets(overrides: Sequence[str], options: Options | None) -> Iterator[str]:
    texts = [(text.partition("=")[0].lstrip("+"), text) for text in overrides]
    paths = [options.folder / name for name in options.files] if options else []
    texts += [(f"--config-dir: {path}", path.read_text(encoding="utf-8")) for path in paths]
    for where, text in texts:
        if holds_secret(text):
            yield (
                f"{where}: holds a password, a key or a signed URL; what is submitted can be read in the cluster by "
                "whoever may use it. Let its nodes have the credentials (their environment, a role, a Kubernetes "
                "secret), and give the address without them"
            )


def holds_secret(text: str) -> bool:
    """Return whether a text holds a URL's credentials or signature, or the value of a secret environment variable."""
    return redact(text) != text or without_secrets(text) != text


def _lost(config: Config) -> Iterator[str]:
    """Yield a mistake for each place that lies in the job's own folder, which the cluster deletes."""
    storage = getattr(config, "storage", None)
    places = [("storage.root", storage.root)] if storage else []
    places += [(name, getattr(config, name)) for name in _OUTPUTS if isinstance(getattr(config, name, None), str)]
    for name, value in places:
        if _is_relative(value):
            yield (
                f"{name}={shown(value)}: a relative path lies in the job's own folder on the cluster, which is deleted "
                f"after it; give a URL such as s3://bucket/{value.strip('/') or 'outputs'}, or the absolute path of a "
                "folder that all its nodes share"
            )


def _is_relative(path: str) -> bool:
    return is_local(path) and not Path(path_of(path)).expanduser().is_absolute()


def _not_sent(config: Config, files: Collection[str]) -> Iterator[str]:
    """Yield a mistake for each relative input that is here, and of which not every file is sent."""
    for name, texts in inputs_of(config):
        for text in filter(_is_relative, texts):
            if missing := _files_that_stay(path_of(text), files):
                what = f"{missing[0]} and {len(missing) - 1} more are" if missing[1:] else f"{missing[0]} is"
                yield (
                    f"{name}={shown(text)}: {what} not among the files that are sent, so not on the cluster; put it "
                    "into storage that its nodes can read, and give the URL or the path there"
                )


def _files_that_stay(text: str, files: Collection[str]) -> list[str]:
    """Return the files that a relative path, a glob or a folder here names, and that are not sent."""
    found: set[str] = set()
    for path in map(Path, _found(text)):
        inside = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
        found |= {one.as_posix() for one in inside if one == Path(text) or not is_never_sent(one.as_posix())}
    return sorted(found - {*files})


def _found(text: str) -> list[str]:
    return [text] if Path(text).exists() else glob.glob(text, recursive=True)


def _only_here(config: Config, project: Project | None) -> Iterator[str]:
    """Yield a line for each input at an absolute path of this machine, where the cluster may have another file or none.

    It is not refused: the nodes may share that folder, or be this machine.
    """
    for name, texts in inputs_of(config):
        for text in texts:
            path = Path(path_of(text)).expanduser() if is_local(text) else Path()
            if not path.is_absolute() or not _found(str(path)):
                continue
            inside = path.relative_to(project.folder) if project and path.is_relative_to(project.folder) else None
            remedy = (
                f"what is sent of this folder is at {inside.as_posix()} there, so give that"
                if inside
                else "the nodes have it only if they share that folder; otherwise put it into storage that they can "
                "read, or into this folder, and give a relative path"
            )
            yield f"{name}={shown(text)}: is a path of this machine; {remedy}"

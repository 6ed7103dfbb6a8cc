"""Single files of a hub's repositories, and what a refusal means. Imports no torch.

A file comes from the hub's cache on this disk, without asking anybody, or else from the hub.
"""

from pathlib import Path

from components.errors import BackboneError
from components.models import hub

HUB_SECONDS = 5.0  # to wait for the answer about one file


def download(name: str, repository: str, file: str, revision: str | None, hint: str = "") -> Path:
    """One file of a repository, from the hub's cache on this disk or from the hub.

    Raises BackboneError; FileNotFoundError where the repository has no such file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]  # its client's

    try:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        if reason := hub.why_unreachable():
            raise unreachable(name, f"no such file in the cache, and {reason}", hint) from None
    try:
        return Path(hf_hub_download(repository, file, revision=revision, etag_timeout=HUB_SECONDS))
    except LocalEntryNotFoundError as error:
        raise unreachable(name, _first_line(error.__cause__ or error), hint) from None
    except EntryNotFoundError:
        raise FileNotFoundError(file) from None
    except (HTTPError, OSError) as error:
        raise _explain(name, repository, error, hint) from None


def ask_commit(repository: str, revision: str | None) -> str:
    """The commit on the hub; '' where it does not answer or refuses, explained when weights are fetched."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # its client's

    if hub.why_unreachable():
        return ""
    try:
        info = HfApi(constants.ENDPOINT).model_info(repository, revision=revision, timeout=HUB_SECONDS)
    except (HTTPError, OSError):
        return ""
    return info.sha or ""


def list_files(repository: str, revision: str | None) -> list[str]:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # its client's

    try:
        return sorted(HfApi(constants.ENDPOINT).list_repo_files(repository, revision=revision))
    except (HTTPError, OSError):
        return []


def _explain(name: str, repository: str, error: Exception, hint: str) -> BackboneError:
    """What the hub's refusal means."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, GatedRepoError):
        return BackboneError(
            f"backbone {name}",
            expected="a repository that this machine may read",
            found="a gated one, whose licence must be accepted first",
            hint=f"Accept its licence at {page}, then set HF_TOKEN to a token of that account.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return BackboneError(
            f"backbone {name}",
            expected="a repository of the hub",
            found=f"no {repository} there, or a private one",
            hint="Correct the name; for a private repository set HF_TOKEN to a token that may read it.",
        )
    if isinstance(error, RevisionNotFoundError):
        expected, found = "a branch, tag or commit of the repository", _first_line(error)
        hint = f"Correct what stands behind the @; {page} lists them."
        return BackboneError(f"backbone {name}", expected=expected, found=f"none of that name ({found})", hint=hint)
    return unreachable(name, _first_line(error), hint)


def unreachable(name: str, found: str, hint: str) -> BackboneError:
    expected = "its files in the hub's cache or on the hub"
    return BackboneError(f"backbone {name}", expected=expected, found=found, hint=hint or "Connect to the network.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""The Hub: what may be the id of a repository there, and why a request to it failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from builder.untrusted import one_line


def is_hub_id(text: str) -> bool:
    """Whether a text may be the id of a repository on the Hub: NAME or NAMESPACE/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def request_errors() -> tuple[type[Exception], ...]:
    """Return what huggingface_hub raises where a request fails, or its answer is a refusal."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    return HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled


def why(error: BaseException, revision: str | None = None) -> str:
    """Return why a request failed, as what follows the name of the repository in a sentence.

    What the Hub itself says stands in it. Advice is given only where the cause is known.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return "is gated: accept its terms on the Hub and run `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "is neither a folder here nor on the Hub, or it is private (`hf auth login`)"
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision {revision or 'main'!r} on the Hub"
    if isinstance(error, LocalEntryNotFoundError):
        return "is not in the local cache, and the Hub cannot be reached: check the connection"
    if (response := response_of(error)) is not None:
        return f"cannot be had from the Hub, which answers {response.status_code}: {words(error)}"
    return f"cannot be had from the Hub ({one_line(error)}): check the connection and try again"


def is_absent(error: BaseException) -> bool:
    """Whether the Hub says that there is no such repository or revision, or not for this token."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    return isinstance(error, RepositoryNotFoundError | RevisionNotFoundError)


def words(error: BaseException) -> str:
    """Return what the Hub itself says in an answer, on one line; without that, what is known."""
    for each in _chain(error):
        if said := getattr(each, "server_message", None):
            return one_line(said)
    return one_line(error)


def response_of(error: BaseException) -> Any:
    """Return the Hub's answer that an error speaks of; None where there was no answer."""
    from huggingface_hub.errors import HfHubHTTPError

    found = (each.response for each in _chain(error) if isinstance(each, HfHubHTTPError))
    return next(found, None)


def is_connection(error: BaseException) -> bool:
    """Whether an error speaks of the network, not of what was asked.

    Of several uploads at once the first to lose the connection closes the client of all, and the
    others then fail with a RuntimeError, or with an AttributeError of a client that is not there
    any more; Xet speaks of the network by a RuntimeError, too.
    """
    from httpx2 import HTTPError

    *_, cause = _chain(error)
    return type(cause) in (RuntimeError, AttributeError) or any(
        isinstance(each, HTTPError | ConnectionError | TimeoutError) for each in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from; huggingface_hub wraps those of uploads."""
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__

"""What every part of the application shares: the store, the settings, who sends a request."""

from __future__ import annotations

import hashlib
import hmac
import time
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

from fastapi import Depends, Form, Header, HTTPException, Request
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates

from lit_rlhf.feedback.agreement import Undefined
from lit_rlhf.feedback.judgments import answer_text
from lit_rlhf.feedback.quality import Share
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.labelling.access import User, csrf_token, find_user
from lit_rlhf.labelling.guard import RateLimit
from lit_rlhf.labelling.rendering import plain_text, shown_text
from lit_rlhf.labelling.statistics import StatisticsReader
from lit_rlhf.prompts import prompt_text, response_text

COOKIE = "lit_rlhf_session"
_HERE = Path(__file__).parent
STATIC = _HERE / "static"
_DIGITS = 12  # of a digest in a version
_SHOWN = 1_000  # characters of a text on the project page


class Settings(NamedTuple):
    """What `lit-rlhf label serve` can set.

    Attributes:
        guidelines: a Markdown file that labelers work by.
        rating_scale: ratings go from 1 to this.
        lease_s: after so many seconds a task that was given out may go to somebody else.
        requests_per_minute: of one user.
        qualification: a new labeler's first tasks are so many with a gold answer.
    """

    guidelines: Path | None = None
    rating_scale: int = 5
    lease_s: float = 1800
    requests_per_minute: int = 600
    qualification: int = 0


class Page:
    """The running application.

    Attributes:
        store: where judgments go.
        settings: of the command.
        requests: how often a user may ask.
        joins: how often an address may try an invitation that opens nothing.
        statistics: of the project page.
    """

    def __init__(self, store: FeedbackStore, settings: Settings) -> None:
        """Begin."""
        self.store = store
        self.settings = settings
        self.requests = RateLimit(settings.requests_per_minute)
        self.joins = RateLimit(20)
        self.statistics = StatisticsReader()
        self._templates = Jinja2Templates(_HERE / "templates")
        self._templates.env.filters |= {
            "answer": answer_text,
            "beginning": _beginning,
            "day": _day,
            "plain": plain_text,
            "prompt": prompt_text,
            "response": response_text,
            "share": _share_text,
        }

    @cached_property
    def guidelines(self) -> str | None:
        """The guidelines as HTML; None where there are none."""
        text = self._guidelines_text
        return None if text is None else shown_text(text).html

    @cached_property
    def guideline_version(self) -> str | None:
        """What tells one version of the guidelines from another: it is kept with each judgment."""
        text = self._guidelines_text
        return None if text is None else _digest(text.encode())

    @cached_property
    def asset_version(self) -> str:
        """Changes with script and style, so that browsers may keep them."""
        return _digest(b"".join(path.read_bytes() for path in sorted(STATIC.iterdir())))

    def render(self, request: Request, template: str, **values: object) -> HTMLResponse:
        """Return a page made from a template."""
        session = request.cookies.get(COOKIE, "")
        context = values | {
            "nonce": request.state.nonce,
            "csrf": csrf_token(session),
            "version": self.asset_version,
            "has_guidelines": self.settings.guidelines is not None,
        }
        return self._templates.TemplateResponse(request, template, context)

    @cached_property
    def _guidelines_text(self) -> str | None:
        path = self.settings.guidelines
        return None if path is None else path.read_text(encoding="utf-8")


def page_of(request: Request) -> Page:
    """Return the application that a request is for."""
    page: Page = request.app.state.page
    return page


def visitor_of(request: Request) -> User | None:
    """Return whose session the request belongs to; None for nobody's."""
    session = request.cookies.get(COOKIE)
    return find_user(page_of(request).store.database, session, "session") if session else None


def _labeler_of(request: Request) -> User:
    """Return the user of a session: a labeler or an administrator.

    Raises:
        HTTPException: 401 without a session, 429 where the user asks too often.
    """
    user = visitor_of(request)
    if user is None:
        raise HTTPException(401, "your session has ended; open a new invitation link")
    page_of(request).requests.take(user.name)
    return user


def _admin_of(user: Annotated[User, Depends(_labeler_of)]) -> User:
    """Return an administrator.

    Raises:
        HTTPException: 403 for everybody else.
    """
    if user.role != "admin":
        raise HTTPException(403, "this page is for administrators")
    return user


def check_csrf(request: Request, x_csrf_token: Annotated[str, Header()] = "") -> None:
    """Refuse a script's request that does not know its session's token.

    Raises:
        HTTPException: 403.
    """
    expected = csrf_token(request.cookies.get(COOKIE, ""))
    if not hmac.compare_digest(x_csrf_token.encode(), expected.encode()):
        raise HTTPException(403, "the page is out of date; load it again")


def check_form(request: Request, csrf: Annotated[str, Form()] = "") -> None:
    """Refuse a form that does not know its session's token.

    Raises:
        HTTPException: 403.
    """
    check_csrf(request, csrf)


Labeler = Annotated[User, Depends(_labeler_of)]
Admin = Annotated[User, Depends(_admin_of)]


def _share_text(share: Share) -> str:
    """Return a share as people read it; nothing where it is undefined."""
    if isinstance(share, Undefined):
        return ""
    ends = "" if share.low is None else f" ({share.low:.0%} to {share.high:.0%})"
    return f"{share.value:.0%}{ends}"


def _beginning(text: str) -> str:
    """Return the beginning of a text as one that hides nothing."""
    return plain_text(text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …")


def _day(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]

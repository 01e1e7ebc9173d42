"""The pages that people open: joining by an invitation, labeling, the guidelines."""

from __future__ import annotations

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BaseModel

from lit_rlhf.labelling.access import end_session, exchange, is_invitation
from lit_rlhf.labelling.page import COOKIE, Labeler, check_form, page_of, visitor_of

router = APIRouter()
_SESSION_S = 90 * 86_400


class Invitation(BaseModel):
    """The secret of an invitation link."""

    secret: str


@router.get("/", response_class=HTMLResponse)
def labeling_page(request: Request) -> Response:
    """Show the labeling page, or how to get in."""
    user = visitor_of(request)
    if user is None:
        return RedirectResponse("/join", 303)
    page = page_of(request)
    return page.render(
        request,
        "label.html",
        user=user,
        guideline=page.guideline_version or "",
        scale=page.settings.rating_scale,
    )


@router.get("/join", response_class=HTMLResponse)
def join_page(request: Request) -> Response:
    """Show the page that exchanges an invitation; its secret is in the link's fragment."""
    return page_of(request).render(request, "join.html", user=visitor_of(request))


@router.post("/v1/session")
def join(request: Request, invitation: Invitation) -> Response:
    """Exchange an invitation for a session, once."""
    page = page_of(request)
    # A whole office may join from one address: only what opens nothing is counted.
    if not is_invitation(page.store.database, invitation.secret):
        page.joins.take(request.client.host if request.client else "")
    session = exchange(page.store.database, invitation.secret)
    if session is None:
        raise HTTPException(403, "this invitation was used already, or it has expired; ask for one")
    response = Response(status_code=204)
    is_https = request.url.scheme == "https"
    response.set_cookie(
        COOKIE, session, max_age=_SESSION_S, httponly=True, samesite="lax", secure=is_https
    )
    return response


@router.post("/leave", dependencies=[Depends(check_form)])
def leave(request: Request, _: Labeler) -> Response:
    """End the session."""
    end_session(page_of(request).store.database, request.cookies[COOKIE])
    response = RedirectResponse("/join", 303)
    response.delete_cookie(COOKIE)
    return response


@router.get("/guidelines", response_class=HTMLResponse)
def guidelines(request: Request, user: Labeler) -> Response:
    """Show what labelers work by."""
    page = page_of(request)
    if page.guidelines is None:
        raise HTTPException(404, "there are no guidelines; start with --guidelines FILE.md")
    return page.render(request, "guidelines.html", user=user, guidelines=page.guidelines)

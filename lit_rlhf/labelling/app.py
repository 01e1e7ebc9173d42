"""The application, put together: `create_app(store)` is what a server runs."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from lit_rlhf import __version__
from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.labelling import admin, pages, product, tasks
from lit_rlhf.labelling.guard import guard
from lit_rlhf.labelling.page import STATIC, Page, Settings


def create_app(store: FeedbackStore, settings: Settings | None = None) -> FastAPI:
    """Return the labeling application over a store.

    Args:
        store: an open one; closing it is up to you.
        settings: of the page.
    """
    # The interactive documentation loads scripts from elsewhere; /openapi.json is there.
    app = FastAPI(title="lit_rlhf labeling", version=__version__, docs_url=None, redoc_url=None)
    app.state.page = Page(store, settings or Settings())
    app.middleware("http")(guard)
    app.exception_handler(HTTPException)(_refuse)
    app.exception_handler(RequestValidationError)(_refuse_values)
    for part in (pages, tasks, product, admin):
        app.include_router(part.router)
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


async def _refuse(request: Request, error: HTTPException) -> Response:
    """Answer a program with JSON, and a person with a page."""
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
    if error.status_code == 401:
        return RedirectResponse("/join", 303)
    page: Page = request.app.state.page
    response = page.render(request, "error.html", user=None, message=error.detail)
    response.status_code = error.status_code
    return response


async def _refuse_values(_: Request, error: RequestValidationError) -> Response:
    """Name each wrong value in one line, without sending the values back."""
    lines = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
    return JSONResponse({"detail": "; ".join(lines)}, 422)

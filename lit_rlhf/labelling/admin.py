"""The administrator's page: coverage, people, agreement; inviting, pausing, adding tasks."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import HTMLResponse, RedirectResponse

from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.feedback.task_files import read_tasks_of_file
from lit_rlhf.labelling.access import invite, revoke
from lit_rlhf.labelling.guard import TASKS_FILE
from lit_rlhf.labelling.page import Admin, check_form, page_of

router = APIRouter()
_checked = [Depends(check_form)]


@router.get("/admin", response_class=HTMLResponse)
def admin_page(request: Request, user: Admin) -> Response:
    """Show how far the project is, and who works on it."""
    return _admin_page(request, user.name)


@router.post("/admin/invite", response_class=HTMLResponse, dependencies=_checked)
def invite_labeler(
    request: Request, user: Admin, name: Annotated[str, Form()], role: Annotated[str, Form()]
) -> Response:
    """Invite somebody, and show the link once: the store has its hash alone."""
    try:
        secret = invite(page_of(request).store.database, name, role)  # type: ignore[arg-type] # checked there
    except ConfigError as error:
        raise HTTPException(422, str(error)) from error
    is_token = role == "api"
    link = secret if is_token else f"{request.base_url}join#{secret}"
    return _admin_page(request, user.name, invited=name, link=link, is_token=is_token)


@router.post("/admin/pause", dependencies=_checked)
def pause(
    request: Request, _: Admin, name: Annotated[str, Form()], is_paused: Annotated[bool, Form()]
) -> Response:
    """Give somebody no more tasks, or tasks again."""
    page_of(request).store.pause(name, is_paused=is_paused)
    return RedirectResponse("/admin", 303)


@router.post("/admin/revoke", dependencies=_checked)
def revoke_access(request: Request, _: Admin, name: Annotated[str, Form()]) -> Response:
    """Log somebody out everywhere; a new invitation lets them in again."""
    revoke(page_of(request).store.database, name)
    return RedirectResponse("/admin", 303)


@router.post(TASKS_FILE, response_class=HTMLResponse, dependencies=_checked)
def add_tasks(
    request: Request, user: Admin, file: UploadFile, slots: Annotated[int, Form(ge=1, le=50)]
) -> Response:
    """Add the tasks of a JSONL file, each for so many labelers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(file.filename or "tasks.jsonl").name
        with path.open("wb") as stream:
            shutil.copyfileobj(file.file, stream)
        try:
            read = read_tasks_of_file(path, "auto", "refuse")
            tasks = [task for task in read if task is not None]
            added = page_of(request).store.add_tasks(tasks, slots=slots)
        except DataError as error:
            message = str(error).replace(f"{folder}/", "")
            return _admin_page(request, user.name, status=422, error=message)
    said = f"{added.tasks} new tasks, {added.judgments} new judgments."
    if added.unasked:
        said += f" {added.unasked} are asked of nobody: two of their responses are the same."
    return _admin_page(request, user.name, said=said)


def _admin_page(request: Request, name: str, status: int = 200, **values: object) -> Response:
    page = page_of(request)
    values |= page.statistics.read(page.store.database)._asdict()
    response = page.render(request, "admin.html", user={"name": name, "role": "admin"}, **values)
    response.status_code = status
    return response

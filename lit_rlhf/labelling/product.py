"""`POST /v1/feedback`: thumbs and edits from a running product, as judgments of the store."""

from __future__ import annotations

from typing import Annotated, Self

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.labelling.access import User, find_user
from lit_rlhf.labelling.page import page_of
from lit_rlhf.prompts import Message, Prompt

router = APIRouter(prefix="/v1")
_bearer = HTTPBearer(
    auto_error=False, description="of `lit-rlhf label invite STORE NAME --role api`"
)


class ProductMessage(BaseModel):
    """One message of a chat."""

    role: str
    content: str


class ProductFeedback(BaseModel):
    """What a user of the product said about one response.

    Attributes:
        id: made by the product, a UUID: sent twice, it is stored once.
        prompt: text, or the chat up to the response.
        response: what the model answered.
        label: thumbs up or down.
        edit: the response as the user would have it.
        user: who said it, by whatever name the product has.
        model: what answered.
        comment: what the user wrote.
    """

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=16, max_length=64)
    prompt: str | list[ProductMessage]
    response: str
    label: bool | None = None
    edit: str | None = None
    user: str | None = Field(None, max_length=100)
    model: str | None = Field(None, max_length=200)
    comment: str = Field("", max_length=20_000)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if (self.label is None) == (self.edit is None):
            raise ValueError("send either 'label' (thumbs up or down) or 'edit'")
        return self


def _program_of(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> User:
    """Return whose API token a request has.

    Raises:
        HTTPException: 401 without a valid one, 429 where it asks too often.
    """
    page = page_of(request)
    user = find_user(page.store.database, credentials.credentials, "api") if credentials else None
    if user is None:
        raise HTTPException(401, "send an API token", {"WWW-Authenticate": "Bearer"})
    page.requests.take(f"api {user.name}")
    return user


@router.post("/feedback")
def add_feedback(
    request: Request, program: Annotated[User, Depends(_program_of)], sent: ProductFeedback
) -> dict[str, bool]:
    """Store what a user said; when this answers, it is on the disk."""
    prompt: Prompt = sent.prompt if isinstance(sent.prompt, str) else _messages(sent.prompt)
    judgment = Judgment(
        "judged",
        ratings=None if sent.label is None else (float(sent.label),),
        edit=sent.edit,
        labeler=f"{program.name}:{sent.user}" if sent.user else program.name,
        comment=sent.comment,
        id=sent.id,
    )
    task = JudgedTask(prompt, (sent.response,), (judgment,), (sent.model,), {})
    try:
        added = page_of(request).store.add_tasks([task])
    except DataError as error:
        raise HTTPException(422, str(error)) from error
    return {"is_new": added.judgments > 0}


def _messages(sent: list[ProductMessage]) -> tuple[Message, ...]:
    return tuple(Message(role=message.role, content=message.content) for message in sent)

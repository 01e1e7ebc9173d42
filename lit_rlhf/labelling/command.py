"""The command `lit-rlhf label`: serve the labeling page, invite people."""

from __future__ import annotations

import argparse
import ipaddress
from pathlib import Path

from lit_rlhf.errors import ConfigError
from lit_rlhf.extras import require_extra
from lit_rlhf.markdown import say


def label_command(arguments: list[str]) -> int:
    """Run one of the commands on a store.

    Args:
        arguments: those after `lit-rlhf label`.

    Returns:
        0.

    Raises:
        LitRLHFError: the store, a file or an address is not as it must be.
    """
    options = _parser().parse_args(arguments)
    require_extra("feedback", "lit-rlhf label")
    require_extra("label", "lit-rlhf label")
    {"serve": _serve, "invite": _invite}[options.command](options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-rlhf label",
        description="Let people judge responses in their browsers. STORE is a file such as "
        "feedback.db, or postgresql://USER@HOST/NAME.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve the labeling page")
    serve.add_argument("store")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: here)")
    serve.add_argument("--port", type=int, default=8017)
    serve.add_argument("--guidelines", type=Path, help="a Markdown file that labelers work by")
    serve.add_argument("--rating-scale", type=int, default=5, help="ratings go from 1 to this")
    serve.add_argument(
        "--lease-minutes", type=float, default=30, help="then a task may go to somebody else"
    )
    serve.add_argument(
        "--qualification",
        type=int,
        default=0,
        metavar="N",
        help="new labelers begin with so many tasks that have a gold answer",
    )
    serve.add_argument("--proxy", action="store_true", help="trust a proxy's X-Forwarded headers")
    invite = commands.add_parser("invite", help="print a link that lets one person in")
    invite.add_argument("store")
    invite.add_argument("name", help="the labeler's, as judgments will show it")
    invite.add_argument("--role", choices=("labeler", "admin", "api"), default="labeler")
    invite.add_argument("--url", default="http://127.0.0.1:8017", help="where the page is served")
    return parser


def _serve(options: argparse.Namespace) -> None:
    import uvicorn  # noqa: PLC0415 - an optional package

    from lit_rlhf.feedback.store import FeedbackStore  # noqa: PLC0415
    from lit_rlhf.labelling.access import has_admin, invite  # noqa: PLC0415
    from lit_rlhf.labelling.app import create_app  # noqa: PLC0415
    from lit_rlhf.labelling.page import Settings  # noqa: PLC0415

    _check_serving(options)
    _say_if_new(options.store)
    with FeedbackStore.open(options.store) as store:
        url = f"http://{_shown_host(options.host)}:{options.port}"
        if not has_admin(store.database):
            if not _is_loopback(options.host):
                raise ConfigError(
                    f"{options.store}: nobody administers this store yet, so it is served on this "
                    "machine alone; first run: "
                    f"lit-rlhf label invite {options.store} YOUR_NAME --role admin --url {url}"
                )
            say("Open this link once to administer the page:")
            say(f"  {url}/join#{invite(store.database, 'admin', 'admin')}")
        say(f"The labeling page is at {url}  (Ctrl+C ends it)")
        settings = Settings(
            options.guidelines,
            options.rating_scale,
            options.lease_minutes * 60,
            qualification=options.qualification,
        )
        uvicorn.run(
            create_app(store, settings),
            host=options.host,
            port=options.port,
            log_level="warning",
            proxy_headers=options.proxy,
            forwarded_allow_ips="*" if options.proxy else "",
        )


def _invite(options: argparse.Namespace) -> None:
    from lit_rlhf.feedback.store import FeedbackStore  # noqa: PLC0415
    from lit_rlhf.labelling.access import invite  # noqa: PLC0415

    _say_if_new(options.store)
    with FeedbackStore.open(options.store) as store:
        secret = invite(store.database, options.name, options.role)
    if options.role == "api":
        say(f"Send this with each request, as `Authorization: Bearer {secret}`")
        return
    say(f"This link works once, within 14 days, for {options.name}:")
    say(f"  {options.url.rstrip('/')}/join#{secret}")


def _say_if_new(store: str) -> None:
    """Say that a store is made here: its name may be a slip."""
    from lit_rlhf.feedback.database import parse_url  # noqa: PLC0415

    url = parse_url(store)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        say(f"{store}: there was no such store; a new one without tasks is made.")


def _check_serving(options: argparse.Namespace) -> None:
    if options.guidelines is not None and not options.guidelines.is_file():
        raise ConfigError(f"--guidelines {options.guidelines}: there is no such file.")
    if options.guidelines is not None:
        try:
            options.guidelines.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ConfigError(
                f"--guidelines {options.guidelines}: no UTF-8 text: {error}"
            ) from error
    if not 2 <= options.rating_scale <= 9:
        raise ConfigError(f"--rating-scale {options.rating_scale}: expected 2 to 9, one key each.")
    if not 0 < options.lease_minutes < float("inf"):
        raise ConfigError(f"--lease-minutes {options.lease_minutes}: expected more than 0.")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host

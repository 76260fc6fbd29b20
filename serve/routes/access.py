"""Who asks: the dependency of every route that is not open to all."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials

from serve.desk import Desk, desk_of
from serve.edge.auth import BEARER, X_TOKEN, Principal
from serve.edge.measure import OWNER


async def caller(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)] = None,  # noqa: ARG001 - OpenAPI's
    x_token: Annotated[str | None, Security(X_TOKEN)] = None,  # noqa: ARG001
) -> Principal:
    """Whose request it is.

    Raises:
        Problem: 401, 403 or 429.
    """
    desk: Desk = request.app.state.desk
    principal = await desk.auth(request)
    setattr(request.state, OWNER, principal.name)
    return principal


Asks = Annotated[Principal, Depends(caller)]
TheDesk = Annotated[Desk, Depends(desk_of)]

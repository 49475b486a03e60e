"""Keys: made, listed, revoked by admins, none of whom sees or gives more than their own key covers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from control.views import IssuedKeyView, Keys, KeyView, NewKey, key_view
from core.identity import ADMIN, Principal
from core.web import require
from repository.commands import Commands

Admin = Annotated[Principal, Depends(require(ADMIN))]


def router(commands: Commands) -> APIRouter:
    api = APIRouter(prefix="/keys")

    @api.get("", summary="The keys, without their secrets")
    async def list_keys(who: Admin) -> Keys:
        return Keys(keys=[key_view(key) for key in await commands.keys(who)])

    @api.post("", status_code=201, summary="Make a key; the answer shows it once")
    async def create_key(who: Admin, wish: NewKey) -> IssuedKeyView:
        issued = await commands.create_key(
            wish.name,
            role=wish.role,
            owner=wish.owner,
            patterns=tuple(wish.models),
            grants=tuple(wish.grants),
            expires_in_s=wish.expires_in_s,
            giver=who,
        )
        return IssuedKeyView(**key_view(issued.key).model_dump(), key=issued.secret)

    @api.delete("/{key_id}", summary="Revoke a key, for ever")
    async def revoke_key(who: Admin, key_id: str) -> KeyView:
        return key_view(await commands.revoke_key(key_id, who))

    return api

"""How a model is to run: how many replicas of each loaded version, and what one of them gets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from control.views import Accepted, Error
from core.errors import NotFound
from core.identity import DEPLOY, PREDICT, Principal
from core.web import require
from repository.commands import Commands
from repository.records import Deployment
from repository.watch import Watch

Reader = Annotated[Principal, Depends(require(PREDICT))]
Deployer = Annotated[Principal, Depends(require(DEPLOY))]


class DeploymentView(BaseModel):
    model: str = Field(examples=["digits"])
    replicas: int = Field(description="of each loaded version, at least")
    max_replicas: int = Field(description="of each loaded version, at most: as many as demand asks for")
    cpus: float = Field(description="cores that a replica is placed by", examples=[0.1])
    gpus: float = Field(description="devices of a replica: a share of one, or whole ones", examples=[0.5])
    accelerator: str = Field(description="type of device in Ray's words; empty: any", examples=["H200"])
    revision: int = Field(description="0: nothing was set, these are the defaults")


class NewDeployment(Accepted):
    """What is left out has its default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    replicas: int = Field(default=1, examples=[2])
    max_replicas: int | None = Field(default=None, description="default: the replicas", examples=[8])
    cpus: float = Field(default=Deployment(model="").cpus, examples=[1])
    gpus: float = Field(default=0.0, examples=[0.5])
    accelerator: str = Field(default="", examples=["H200"])
    revision: int | None = Field(
        default=None, ge=0, description="the one that this changes: 409 where it is another meanwhile"
    )


def deployment_view(deployment: Deployment) -> DeploymentView:
    return DeploymentView(
        model=deployment.model,
        replicas=deployment.replicas,
        max_replicas=deployment.max_replicas,
        cpus=deployment.cpus,
        gpus=deployment.gpus,
        accelerator=deployment.accelerator,
        revision=deployment.revision,
    )


def _asked(model: str, wish: NewDeployment) -> Deployment:
    return Deployment(
        model=model,
        replicas=wish.replicas,
        max_replicas=wish.replicas if wish.max_replicas is None else wish.max_replicas,
        cpus=wish.cpus,
        gpus=wish.gpus,
        accelerator=wish.accelerator,
    )


def router(commands: Commands, watch: Watch) -> APIRouter:
    api = APIRouter(prefix="/models/{model}/deployment")

    @api.get("", summary="How the model is to run; the defaults where nothing was set")
    async def read_deployment(who: Reader, model: str) -> DeploymentView:
        catalog = await watch.refresh()
        if model not in catalog.versions:
            raise NotFound(f"unknown model {model[:128]!r}")
        return deployment_view(catalog.deployment(model))

    @api.put(
        "",
        summary="Say how the model is to run; workers make it so",
        responses={409: {"model": Error, "description": "it has another revision meanwhile"}},
    )
    async def set_deployment(who: Deployer, model: str, wish: NewDeployment) -> DeploymentView:
        return deployment_view(await commands.set_deployment(_asked(model, wish), wish.revision))

    @api.delete("", summary="Let the model run by the defaults again")
    async def delete_deployment(who: Deployer, model: str) -> DeploymentView:
        return deployment_view(await commands.delete_deployment(model))

    return api

"""The `penstock` command line. Each command imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli import options

app = typer.Typer(
    name="penstock", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich"
)
_PROFILE_HELP = "NAME:MIN,OPT,MAX of an input, such as input:1x3x224x224,8x3x224x224,32x3x224x224; repeatable"
SERVICES = ("registry", "scheduler", "gateway", "worker")


@app.callback()
def root() -> None:
    """An inference mesh: KServe v2 over gRPC and OpenAI-style HTTP over your GPU and CPU machines."""


@app.command()
def up(
    data: options.Data = None,
    region: Annotated[str, typer.Option(help="region of every process")] = "local",
    workers: Annotated[int, typer.Option(min=1, max=64, help="workers to start")] = 2,
    gateways: Annotated[int, typer.Option(min=1, max=8, help="processes of the gateway, behind one port")] = 1,
    http_port: Annotated[int, typer.Option(help="Envoy's port: OpenAI API; 0 = any free one")] = 8080,
    grpc_port: Annotated[int, typer.Option(help="gateway's port: KServe v2; 0 = any free one")] = 8001,
    host: Annotated[str, typer.Option(help="address that HTTP and gRPC listen on")] = "127.0.0.1",
    etcd: Annotated[str, typer.Option(help="endpoints of an etcd that runs already, host:port,…")] = "",
    database: Annotated[str, typer.Option(help="database URL instead of SQLite in the data folder")] = "",
    artifacts: Annotated[str, typer.Option(help="folder, or a URL such as s3://bucket/prefix, for model files")] = "",
    envoy: Annotated[bool, typer.Option(help="start Envoy")] = True,
    demo: Annotated[bool, typer.Option(help="publish and load the demo models")] = True,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error")] = "info",
) -> None:
    """Start the whole mesh on this machine; Ctrl-C stops it in order."""
    from rich.console import Console

    from cli.mesh import MeshOptions
    from cli.profile import data_folder
    from cli.run import run
    from cli.up import run_up

    chosen = MeshOptions(
        data=data_folder(data),
        region=region,
        workers=workers,
        gateways=gateways,
        http_port=http_port,
        grpc_port=grpc_port,
        host=host,
        etcd=etcd,
        database=database,
        artifacts=artifacts,
        envoy=envoy,
        log_level=log_level,
    )
    run(run_up(chosen, Console(), demo=demo))


@app.command()
def infer(
    model: Annotated[str, typer.Argument(help="model name")],
    image: Annotated[Path | None, typer.Option(help="picture for the model's image input")] = None,
    values: Annotated[list[str] | None, typer.Option("--input", help="NAME=JSON, such as x=[[1,2]]; repeatable")] = None,
    version: Annotated[str, typer.Option(help="model version [default: newest]")] = "",
    top: Annotated[int, typer.Option(min=1, help="classes to show")] = 3,
    seal: Annotated[bool, typer.Option("--seal", help="so that one worker reads the request, and nobody else")] = False,
    authority: Annotated[
        Path | None, typer.Option(help="certificate that vouches for the mesh's workers [default: the data folder's ca/ca.pem]")
    ] = None,
    data: options.Data = None,
    address: options.Address = "",
    key: options.Key = "",
) -> None:
    """Run one request and show the answer."""
    from cli.infer import Question, infer_once
    from cli.profile import data_folder, read_profile
    from cli.run import run
    from cli.seal import infer_sealed
    from runtime.errors import InvalidArgument

    async def work() -> None:
        if authority is not None and not seal:
            raise InvalidArgument("--authority says whom to believe with --seal; pass both, or neither")
        profile = read_profile(data, address=address, key=key)
        question = Question(model, version, image, tuple(values or ()), top)
        if seal:
            await infer_sealed(profile, question, authority or data_folder(data) / "ca" / "ca.pem")
        else:
            await infer_once(profile, question)

    run(work())


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="model name")] = "sums",
    prompt: Annotated[str | None, typer.Argument(help="one question; without it a conversation starts")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float | None, typer.Option(min=0)] = None,
    data: options.Data = None,
    url: options.Url = "",
    key: options.Key = "",
) -> None:
    """Talk to a chat model over the OpenAI API; tokens are shown as they come."""
    from cli.chat import converse
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        sampling = {"max_tokens": max_tokens, "temperature": temperature}
        await converse(
            read_profile(data, url=url, key=key), model, prompt, {k: v for k, v in sampling.items() if v is not None}
        )

    run(work())


@app.command("build-engine")
def build_engine_command(
    source: Annotated[Path, typer.Argument(help="model as an ONNX file, or a folder of ONNX Runtime GenAI's model builder")],
    output: Annotated[Path, typer.Option(help="model folder to write: model.plan and model.toml")],
    profile: Annotated[list[str] | None, typer.Option(help=_PROFILE_HELP)] = None,
    max_batch_size: Annotated[int, typer.Option(min=0, help="rows, instead of profiles, where only batches vary")] = 0,
    target: Annotated[list[str] | None, typer.Option(help="GPUs: sm80,sm89 or 8.0, or current; repeatable")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, or int8 (of a quantised graph)")] = "fp32",
    tf32: Annotated[bool, typer.Option(help="let FP32 products round to TF32, as TensorRT does by itself")] = True,
    runtime: Annotated[str, typer.Option(help="tensorrt_rtx or tensorrt [default: which is installed]")] = "",
    version_compatible: Annotated[bool, typer.Option(help="a plan for tensorrt_lean; of the full TensorRT only")] = False,
    sequences: Annotated[int, typer.Option(min=1, max=1024, help="generations side by side, of a language model")] = 8,
    context_length: Annotated[int, typer.Option(min=0, help="tokens of a language model's sequence [default: its own]")] = 0,
    name: Annotated[str, typer.Option(help="model name [default: the folder's]")] = "",
) -> None:
    """Compile an ONNX model for TensorRT, with or without a GPU here."""
    from rich.console import Console

    from cli.build_engine import build_engine, build_language_engine, build_options, summary
    from cli.run import run
    from worker.engines.tensorrt.language import LanguageOptions, is_language_folder

    async def work() -> None:
        chosen = build_options(
            profile or [], target or [], precision, max_batch_size, tf32=tf32, version_compatible=version_compatible
        )
        console = Console(stderr=True)
        if is_language_folder(source):
            language = LanguageOptions(sequences, context_length)
            built = await build_language_engine(source, output, chosen, language, runtime=runtime, name=name, console=console)
        else:
            built = await build_engine(source, output, chosen, runtime=runtime, name=name, console=console)
        for line in summary(built, output):
            typer.echo(line)

    run(work())


@app.command()
def doctor() -> None:
    """Look at what is installed, missing, too old or not for production."""
    from cli.doctor import show_findings

    raise typer.Exit(show_findings())


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("penstock"))


def _groups() -> None:
    from cli.accounts_commands import tenants, users
    from cli.audit_commands import audit
    from cli.fleet_commands import app as fleet
    from cli.jobs_commands import app as jobs
    from cli.keys_commands import app as keys
    from cli.limits_commands import app as limits
    from cli.models_commands import app as models
    from cli.nodes_commands import app as nodes
    from cli.nodes_commands import join
    from cli.requests_commands import app as requests
    from cli.signers_commands import app as signers
    from cli.storage_commands import app as storage

    app.add_typer(fleet, name="fleet")
    app.add_typer(models, name="models")
    app.add_typer(jobs, name="jobs")
    app.add_typer(signers, name="signers")
    app.add_typer(keys, name="keys")
    app.add_typer(limits, name="limits")
    app.add_typer(requests, name="requests")
    app.add_typer(users, name="users")
    app.add_typer(tenants, name="tenants")
    app.add_typer(nodes, name="nodes")
    app.command()(join)
    app.add_typer(storage, name="storage")
    app.command()(audit)


def _service(name: str) -> Callable[[Sequence[str]], int]:
    import importlib

    from runtime.grpc_core import tune

    tune(os.environ)
    main_of: Callable[[Sequence[str]], int] = importlib.import_module(f"{name}.__main__").main
    return main_of


def _add_service(name: str) -> None:
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["--no-such-option"]}

    @app.command(name, context_settings=settings, help=f"Run one {name}; `penstock {name} --help` lists its settings.")
    def command(context: typer.Context) -> None:
        raise typer.Exit(_service(name)(context.args))


for _name in SERVICES:
    _add_service(_name)
_groups()


def main() -> None:
    """The `penstock` entry point. A service's settings are parsed by the service itself."""
    if len(sys.argv) > 1 and sys.argv[1] in SERVICES:
        sys.exit(_service(sys.argv[1])(sys.argv[2:]))
    app()


if __name__ == "__main__":
    main()

"""The commands `tfrec replay` and `tfrec skew`: what a server's request log is good for."""

from pathlib import Path
from typing import Annotated

import typer

LogArgument = Annotated[list[Path], typer.Argument(metavar="LOG...", help="Files of a server's --request-log.")]


def replay(
    log: LogArgument,
    grpc: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server that is asked.")] = "127.0.0.1:8500",
    model: Annotated[str | None, typer.Option(help="Ask this model instead of the recorded one.")] = None,
    rate: Annotated[float, typer.Option(min=0.0, help="Requests a second; 0 = as fast as they are answered.")] = 0.0,
    clients: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 8,
    token_file: Annotated[Path | None, typer.Option(help="The token that the server wants.")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="Of a server with TLS: who signed its certificate.")] = None,
    cert_file: Annotated[
        Path | None, typer.Option(help="Your own certificate, for a server that asks clients for theirs.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="The private key of that certificate.")] = None,
) -> None:
    """Ask a server what was recorded, and compare answers and times.

    Example: tfrec replay requests-00000.tfrecord --grpc localhost:8500 --rate 100
    """
    from serving.replay import replay as ask_again
    from tfrec.tables import document_table, show

    found = ask_again(
        log,
        grpc,
        model=model,
        rate=rate,
        clients=clients,
        token_file=token_file,
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
    )
    show(document_table(found, title="replay"))


def skew(
    log: LogArgument,
    against: Annotated[
        Path, typer.Option(metavar="DATASET", help="What the served model was trained on, made by `tfrec preprocess`.")
    ],
    model: Annotated[str | None, typer.Option(help="Requests to this model alone.")] = None,
    threshold: Annotated[
        float, typer.Option(min=0.0, help="Divergence in bits, beyond chance, from which the exit code is 1.")
    ] = 0.05,
) -> None:
    """Compare what was asked with what was trained on.

    Unknown items, popularity of items, lengths of histories, event types, features: Jensen-Shannon divergences between
    the requests and the dataset.

    Example: tfrec skew requests-00000.tfrecord --against datasets/shop
    """
    from tfrec.data import Dataset
    from tfrec.skew import compare_requests, recorded_inputs
    from tfrec.tables import rows_table, show

    found = compare_requests(Dataset.open(against), recorded_inputs(log, model))
    rows = [
        (
            row.name,
            f"{row.divergence:.4f}",
            f"{row.noise:.4f}",
            *(("", "") if row.unknown is None else (f"{share:.2%}" for share in row.unknown)),
            "differs" if row.exceeds(threshold) else "",
        )
        for row in found
    ]
    columns = ("", "divergence", "by chance", "unknown, dataset", "unknown, requests", f"beyond {threshold:g}")
    show(rows_table(rows, columns, title=f"requests beside {against}"))
    if any(row.exceeds(threshold) for row in found):
        raise typer.Exit(1)

"""Publishing killed at random points while a server looks on: does it ever serve what is not whole, or answer wrong?

A process publishes one version after another as `tfrec export` does (a hidden sibling, a manifest, a check, flushed,
renamed) and is killed after a random time, a hundred times; each time another goes on. Meanwhile a server looks for
versions ten times a second and a client asks it: every answer must be that of the version that it names. After each
kill every version there is must agree with its manifest, and at the end none may have failed to load.

    python -m benchmarks.serving_publish [--kills 100] [--seed 0]

The last line is one JSON document: kills, how many left something half-written behind, versions published and heard.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc
import httpx
import numpy as np
from tensorflow_serving.apis import prediction_service_pb2_grpc

from benchmarks.serving_overhead import start_server
from tests.serving.saved_models import predict_request, save_half_plus
from tfrec.manifest import verify

KINDS = 7  # version n answers y(0) = n % 7
LONGEST_SECONDS = 0.6
KEPT = 5
PADDING_BYTES = 8 << 20  # so that copying takes a while


# What is killed; a script of its own, which starts at once because it needs no TensorFlow.
PUBLISHER = f"""
import itertools, shutil, sys
from pathlib import Path
from tfrec.manifest import published, verify, write_manifest
sources, base = map(Path, sys.argv[1:])
first = 1 + max(int(path.name) for path in base.iterdir() if path.name.isdecimal())
print("ready", flush=True)
for number in itertools.count(first):
    check = lambda path: verify(path, whole=True)
    with published(base / str(number), check=check, replace=False) as target:
        shutil.copytree(sources / str(number % {KINDS}), target, dirs_exist_ok=True)
        write_manifest(target, {{"number": number}})
"""


class Client:
    """Asks over gRPC and compares each answer with the version that it names."""

    def __init__(self, rpc: str) -> None:
        self.rpc = rpc
        self.stop = threading.Event()
        self.heard: set[int] = set()
        self.wrong: list[str] = []
        self.asked = 0
        self.thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        request = predict_request("m", x=[0.0])
        with grpc.insecure_channel(self.rpc) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while not self.stop.is_set():
                self.asked += 1
                try:
                    answer = stub.Predict(request, timeout=30)
                except grpc.RpcError as error:
                    self.wrong.append(str(error.code()))
                    continue
                version, value = answer.model_spec.version.value, answer.outputs["y"].float_val[0]
                self.heard.add(version)
                if value != version % KINDS:
                    self.wrong.append(f"version {version} answered {value}")


def main() -> None:
    """Kills, looks, and tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources, base = Path(folder) / "sources", Path(folder) / "models" / "m"
        for kind in range(KINDS):
            save_half_plus(sources / str(kind), float(kind))
            (sources / str(kind) / "assets.extra").mkdir()
            (sources / str(kind) / "assets.extra" / "padding").write_bytes(bytes(PADDING_BYTES))
        shutil.copytree(sources / "1", base / "1")
        server, rest, rpc = start_server(base.parent, "--file_system_poll_wait_seconds=0.1")
        client = Client(rpc)
        client.thread.start()
        try:
            result = kill(sources, base, np.random.default_rng(options.seed), options.kills)
            client.stop.set()
            client.thread.join()
            statuses = httpx.get(f"http://{rest}/v1/models/m").json()["model_version_status"]
        finally:
            server.terminate()
            server.wait()
    failed = [each for each in statuses if each["status"]["error_code"] != "OK"]
    if client.wrong or failed:
        raise SystemExit(f"wrong: {client.wrong[:3]}, failed: {failed[:3]}")
    print(json.dumps(result | {"asked": client.asked, "versions_heard": len(client.heard), "wrong": 0}))


def kill(sources: Path, base: Path, generator: np.random.Generator, kills: int) -> dict[str, int]:
    """Starts and kills publishers; raises where a version is not whole."""
    unfinished = 0
    command = [sys.executable, "-c", PUBLISHER, str(sources), str(base)]
    for _ in range(kills):
        publisher = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert publisher.stdout is not None
        publisher.stdout.readline()
        time.sleep(generator.uniform(0.0, LONGEST_SECONDS))
        publisher.kill()
        publisher.communicate()
        unfinished += any(path.is_dir() for path in base.glob(".tmp-*"))
        versions = sorted((path for path in base.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
        for version in versions:
            if version.name != "1":
                verify(version, whole=True)
        for left in [*versions[:-KEPT], *base.glob(".tmp-*")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return {"kills": kills, "left_half_written": unfinished, "versions_published": int(versions[-1].name) - 1}


if __name__ == "__main__":
    main()

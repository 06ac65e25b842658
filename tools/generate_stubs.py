"""Generates `inference_pb2.py` and its types from `inference.proto`.

    python tools/generate_stubs.py [--check]

Needs an environment with `requirements/grpc-tools.txt`: its protoc makes code of protobuf 6, which runs with
the protobuf runtimes 6 and 7. Two things are changed in what protoc makes. The messages go into a descriptor
pool of their own instead of the process-wide one, where they would clash with the stubs of a Triton or KServe
client in the same process, for those describe the same names. And a line says of which `.proto` it was made.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "src" / "cotenant" / "serve" / "grpc"
PROTO = FOLDER / "inference.proto"
GENERATED = ("inference_pb2.py", "inference_pb2.pyi")
SHARED_POOL, OWN_POOL = "_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()"


def digest() -> str:
    """SHA-256 of the `.proto`, as the generated code names it."""
    return hashlib.sha256(PROTO.read_bytes()).hexdigest()


def generate() -> dict[str, str]:
    """The generated files by name. Raises ImportError without grpcio-tools."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"--proto_path={FOLDER}", f"--python_out={folder}", f"--pyi_out={folder}", PROTO.name]
        if protoc.main(["protoc", *arguments]) != 0:
            raise SystemExit(1)
        made = {name: Path(folder, name).read_text() for name in GENERATED}
    code = made["inference_pb2.py"]
    if code.count(SHARED_POOL) != 1:
        raise SystemExit(f"protoc's code does not use {SHARED_POOL} once: adapt {Path(__file__).name}")
    made["inference_pb2.py"] = f"# sha256 of inference.proto: {digest()}\n" + code.replace(
        SHARED_POOL, OWN_POOL
    )
    return made


def main() -> int:
    """Write the files, or compare them with those that are there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is stale")
    check = parser.parse_args().check
    stale = 0
    for name, text in generate().items():
        path = FOLDER / name
        if check and path.read_text() != text:
            print(f"{path} is stale: run python tools/generate_stubs.py", file=sys.stderr)
            stale = 1
        elif not check:
            path.write_text(text)
    return stale


if __name__ == "__main__":
    sys.exit(main())

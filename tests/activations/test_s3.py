"""Stores on an S3 server of this machine (moto's), which also does what real ones do at times."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import uuid4

import pytest
import torch

from dictlearn.activations import layout, remote
from dictlearn.activations.formats.dictlearn import Store
from dictlearn.activations.place import opened
from dictlearn.sources import row_stream
from tests.activations.made import SITES, made
from tests.activations.test_remote import filled, source
from tests.activations.test_store import content
from tests.sources.test_live import equal

# Asked for by name, so that the type checker need not find what only `make test-s3` installs.
boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto.moto_server.werkzeug_app")
serving = pytest.importorskip("werkzeug.serving")
pytest.importorskip("s3fs")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the server's and the client's libraries


class Faulty:
    """A WSGI application that answers some requests as a busy or dying server does."""

    def __init__(self, app: Any):
        self._app, self._lock = app, threading.Lock()
        self.left: dict[str, int] = {}  # faults to come, by kind
        self.done: dict[str, int] = {}

    def plan(self, **faults: int) -> None:
        self.left, self.done = dict(faults), {}

    def _takes(self, kind: str) -> bool:
        with self._lock:
            if self.left.get(kind, 0) <= 0:
                return False
            self.left[kind] -= 1
            self.done[kind] = self.done.get(kind, 0) + 1
            return True

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        of_data = str(environ["PATH_INFO"]).endswith(".safetensors")
        get = environ["REQUEST_METHOD"] == "GET"
        if of_data and self._takes("throttled"):
            body = (
                b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>slow</Message></Error>"
            )
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [body]
        if of_data and get and self._takes("dropped"):
            return self._half(environ, start)
        return self._app(environ, start)

    def _half(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        body = b"".join(self._app(environ, start))
        yield body[: len(body) // 2]
        raise ConnectionAbortedError("this server is dying, as the test wants")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Faulty]]:
    faulty = Faulty(moto.DomainDispatcherApplication(moto.create_backend_app))
    http = serving.make_server("127.0.0.1", 0, faulty, threaded=True)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", faulty
    http.shutdown()
    thread.join()


@pytest.fixture
def place(server: tuple[str, Faulty], monkeypatch: pytest.MonkeyPatch) -> tuple[str, Faulty]:
    url, faulty = server
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": url}
    for name, value in {**keys, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "PATIENCE", 0.01)
    monkeypatch.setattr(row_stream, "LEAST_RUN", 8)
    client = boto3.client("s3")
    bucket = f"acts-{uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    faulty.plan()
    return f"s3://{bucket}/store", faulty


def objects(address: str) -> dict[str, bytes]:
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=bucket)["Contents"]]
    read = {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}
    return {key.removeprefix(f"{prefix}/"): data for key, data in read.items()}


def test_a_bucket_holds_what_a_folder_does_and_serves_the_same_stream(place, tmp_path):
    address, faulty = place
    faulty.plan(throttled=2)
    made(tmp_path / "s")
    filled(address, range(0, 5, 2))
    filled(address)
    assert objects(address) == content(tmp_path / "s") and faulty.done["throttled"] == 2
    near, far = source(str(tmp_path / "s")), source(address)
    faulty.plan(throttled=2, dropped=3)
    assert all(equal(near.next_batch(), far.next_batch()) for _ in range(12))
    assert faulty.done == {"throttled": 2, "dropped": 3}


def test_a_server_that_never_gives_a_file_is_named(place, monkeypatch):
    monkeypatch.setattr(
        remote, "TRIES", 1
    )  # the library below tries again too, with waits of its own
    address, faulty = place
    store = filled(address, range(1))
    faulty.plan(dropped=1000)
    with pytest.raises(OSError, match=f"{address}/shards/000000.safetensors: 1 requests failed, "):
        store.shard(0, SITES)


@pytest.mark.parametrize("how", ["truncated", "gone"])
def test_an_object_that_is_not_whole_is_named_or_left_out(place, how, caplog):
    address, _ = place
    filled(address, range(2))
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    where = {"Bucket": bucket, "Key": f"{prefix}/{layout.data_name(1)}"}
    client = boto3.client("s3")
    whole = client.get_object(**where)["Body"].read()
    late = Store.opened(opened(address))  # it has seen the whole one
    if how == "gone":
        client.delete_object(**where)
    else:
        client.put_object(**where, Body=whole[:-9])
    wanted = f"{address}/shards/000001.safetensors (has|is)"
    with pytest.raises(ValueError, match=wanted):
        late.shard(1, SITES)
    with pytest.raises(ValueError, match=f"on_damage=stop: {wanted}"):
        source(address)
    stream = source(address, on_damage="skip")
    tokens = torch.cat([stream.next_batch().tokens_N for _ in range(6)]).tolist()
    assert set(tokens) <= set(late.shard(0, []).tokens_N.tolist())
    assert "000001.safetensors" in caplog.text


def test_a_cleared_place_is_empty_and_nothing_beside_it_is_lost(place):
    address, _ = place
    filled(address, range(2))
    bucket = address.removeprefix("s3://").partition("/")[0]
    boto3.client("s3").put_object(Bucket=bucket, Key="storehouse/kept", Body=b"x")
    opened(address).clear()
    assert list(objects(f"s3://{bucket}")) == ["storehouse/kept"]
    assert not opened(address).listed() and not opened(address).folders()
    with pytest.raises(ValueError, match="is a whole bucket, which is not emptied"):
        opened(f"s3://{bucket}").clear()

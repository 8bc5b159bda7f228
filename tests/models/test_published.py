"""Fetching published checkpoints, from a server on this machine."""

import functools
import hashlib
import http.server
import json
import threading

import pytest

from dcls_jax.models import DownloadError
from dcls_jax.models.create import MODELS
from dcls_jax.models.published import Published, fetch, zenodo

CONTENT = b"weights" * 1000


@pytest.fixture
def server(tmp_path):
    """A folder served at a local address: (folder, address)."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCLS_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_is_fetched_checked_and_kept(server, cache, monkeypatch):
    folder, address = server
    (folder / "tiny.pth").write_bytes(CONTENT)
    entry = Published(f"{address}/tiny.pth", sha256=hashlib.sha256(CONTENT).hexdigest())
    path = fetch(entry)
    assert path == cache / "tiny.pth"
    assert path.read_bytes() == CONTENT
    (folder / "tiny.pth").unlink()
    assert fetch(entry) == path  # from the cache
    assert [file.name for file in cache.iterdir()] == ["tiny.pth"]


def test_a_damaged_download_is_refused_and_not_kept(server, cache, monkeypatch):
    folder, address = server
    (folder / "tiny.pth").write_bytes(CONTENT[:-1])
    entry = Published(f"{address}/tiny.pth", sha256=hashlib.sha256(CONTENT).hexdigest())
    with pytest.raises(DownloadError, match=r"tiny\.pth.*hash"):
        fetch(entry)
    assert not list(cache.iterdir())


def test_a_name_with_a_hash_is_believed(server, cache, monkeypatch):
    folder, address = server
    begins = hashlib.sha256(CONTENT).hexdigest()[:8]
    for named in (f"tiny-{begins}.pth", "tiny-01234567.pth"):
        (folder / named).write_bytes(CONTENT)
    entry = Published(f"{address}/tiny-{begins}.pth")
    assert fetch(entry).read_bytes() == CONTENT
    entry = Published(f"{address}/tiny-01234567.pth")
    with pytest.raises(DownloadError, match=rf"begins with {begins}, expected 01234567"):
        fetch(entry)
    assert [file.name for file in cache.iterdir()] == [f"tiny-{begins}.pth"]
    assert MODELS["resnet50"][1].checkpoint.sha256_begins == "14fe96d1"
    assert not MODELS["fastvit_sa24"][1].checkpoint.sha256_begins


def test_a_file_cut_short_is_not_kept(server, cache, monkeypatch):
    folder, address = server
    (folder / "tiny.pth").write_bytes(CONTENT)
    send_header = http.server.SimpleHTTPRequestHandler.send_header

    def longer(handler, name, value):
        send_header(handler, name, str(len(CONTENT) + 1) if name == "Content-Length" else value)

    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "send_header", longer)
    entry = Published(f"{address}/tiny.pth")
    with pytest.raises(DownloadError, match="could not download"):
        fetch(entry)
    assert not list(cache.iterdir())


def test_a_zenodo_record_gives_address_and_hash(server, cache, monkeypatch):
    folder, address = server
    (folder / "tiny.pth").write_bytes(CONTENT)
    (folder / "records").mkdir()
    entry = {"key": "tiny.pth", "checksum": f"md5:{hashlib.md5(CONTENT).hexdigest()}"}
    entry["links"] = {"self": f"{address}/tiny.pth"}
    (folder / "records" / "7").write_text(json.dumps({"id": 7, "files": [entry]}))
    import pooch.downloaders

    monkeypatch.setattr(pooch.downloaders, "doi_to_url", lambda doi, **_: "https://zenodo.org/records/7")
    monkeypatch.setattr(pooch.downloaders.ZenodoRepository, "base_api_url", f"{address}/records")
    entry = zenodo(7, "tiny.pth")
    assert fetch(entry).read_bytes() == CONTENT


def test_offline_one_line_says_what_to_do(cache, monkeypatch):
    entry = Published("http://127.0.0.1:9/tiny.pth")
    with pytest.raises(DownloadError) as error:
        fetch(entry)
    text = str(error.value)
    assert "\n" not in text
    assert "get it from http://127.0.0.1:9/tiny.pth" in text
    assert f"put it at {cache / 'tiny.pth'}" in text


def test_every_model_has_published_files_of_its_own():
    files = [file for _, variant in MODELS.values() for file in (variant.checkpoint, variant.dcls_checkpoint)]
    assert len({file.url for file in files}) == len(files) == 16
    assert all(file.url.startswith("https://") for file in files)

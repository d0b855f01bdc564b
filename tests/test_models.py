"""A model is a checked folder, or a hub name fetched once into one; anything else is one line."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rft_ray.errors import InputError
from rft_ray.models import check_model, files_to_fetch, resolve_model

TIED = Path(__file__).parents[1] / "configs" / "quickstart_base" / "tied"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESOLVE = """\
import sys
from pathlib import Path
from rft_ray.errors import InputError
from rft_ray.models import resolve_model
try:
    print(resolve_model(sys.argv[1], Path(sys.argv[2])))
except InputError as error:
    print(error)
    sys.exit(2)
"""


class Hub(BaseHTTPRequestHandler):
    """What snapshot_download asks of a hub, for one model whose files are those of a folder."""

    def __init__(self, folder: Path, asked: list[str], *rest: object) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*rest)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path, names = self.path.split("?")[0], sorted(os.listdir(self.folder))
        if path == "/api/models/tiny/llama":
            siblings = [{"rfilename": name} for name in names]
            self.answer(json.dumps({"id": "tiny/llama", "sha": COMMIT, "siblings": siblings}))
        elif path == f"/api/models/tiny/llama/tree/{COMMIT}":
            self.answer(json.dumps([self.entry(name) for name in names]))
        elif path.startswith(f"/tiny/llama/resolve/{COMMIT}/"):
            self.answer((self.folder / Path(path).name).read_bytes())
        else:
            self.answer(b"", 401 if "gated" in path else 404)

    do_HEAD = do_GET

    def entry(self, name: str) -> dict[str, object]:
        size = (self.folder / name).stat().st_size
        return {"type": "file", "path": name, "size": size, "oid": COMMIT}

    def answer(self, body: str | bytes, status: int = 200) -> None:
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        if status != 200:
            self.send_header("X-Error-Code", "GatedRepo" if status == 401 else "RepoNotFound")
        self.send_header("ETag", hashlib.sha1(body).hexdigest())
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The folder that the hub shows, with a second copy of the weights that nobody needs."""
    folder = tmp_path / "published"
    shutil.copytree(TIED, folder)
    (folder / "pytorch_model.bin").write_bytes(b"the same again")
    return folder


@pytest.fixture
def hub(published: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a running hub, and the paths it was asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, published, asked))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def resolve(model: str, folder: Path, **environment: str) -> tuple[int, str]:
    """`resolve_model` in a process of its own, as the hub's settings are read at import."""
    settings = {"HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": "."}
    environment = {**os.environ, "HF_TOKEN": "", **settings, **environment}
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, model, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode in (0, 2), done.stderr
    (line,) = done.stdout.splitlines()
    return done.returncode, line


def refusal(model: str, folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        resolve_model(model, folder)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(TIED), tmp_path) == str(TIED)
    monkeypatch.chdir(TIED.parents[1])
    assert resolve_model("quickstart_base/tied", tmp_path) == str(TIED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "lacks"),
    [
        ("config.json", "config.json"),
        ("model.safetensors", "weights (*.safetensors or pytorch_model*.bin)"),
        ("tokenizer.json", "a tokenizer (tokenizer.json, tokenizer.model, vocab.json)"),
    ],
)
def test_a_folder_without_a_piece_is_refused(tmp_path: Path, file: str, lacks: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TIED, folder)
    (folder / file).unlink()
    assert refusal(str(folder), tmp_path) == f"model {folder}: the folder lacks {lacks}"


def test_every_weight_file_of_an_index_must_be_there(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TIED, folder)
    index = folder / "model.safetensors.index.json"
    shards = {"a": "model.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(InputError, match=r"lacks model-2\.safetensors$"):
        check_model(folder)
    shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors")
    check_model(folder)
    index.write_text("[]")
    with pytest.raises(InputError, match=r"index\.json: not an index of weights"):
        check_model(folder)


def test_what_is_neither_folder_nor_hub_name_is_refused(tmp_path: Path) -> None:
    for model in ("nowhere", "/no/such/folder", "./a/b", "a/b/c", "../x", "a/.."):
        assert refusal(model, tmp_path) == f"model {model}: no such folder"
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file" in refusal(str(file), tmp_path)


def test_only_what_is_needed_is_fetched() -> None:
    small = ["config.json", "generation_config.json", "tokenizer.model", "LICENSE.txt"]
    safe = ["model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"]
    torch = ["pytorch_model-1.bin", "pytorch_model.bin.index.json"]
    rest = ["README.md", ".gitattributes", "consolidated.safetensors", "tf_model.h5"]
    rest += ["original/params.json", "onnx/model.onnx", "training_args.bin"]
    assert files_to_fetch([*small, *safe, *torch, *rest]) == [*small, *safe]
    assert files_to_fetch([*small, *torch, *rest]) == [*small, *torch]


def test_a_hub_name_is_downloaded_once(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = hub
    models = tmp_path / "models"
    code, folder = resolve("tiny/llama", models, HF_ENDPOINT=address)
    assert (code, folder) == (0, str(models / "tiny--llama"))
    assert sorted(os.listdir(folder)) == sorted(os.listdir(TIED))
    assert (Path(folder) / "model.safetensors").read_bytes() == (
        TIED / "model.safetensors"
    ).read_bytes()
    assert not any("pytorch_model" in path for path in asked)
    asked.clear()
    assert resolve("tiny/llama", models, HF_ENDPOINT=address) == (code, folder)
    assert asked == []


def test_a_download_that_fails_is_continued(
    hub: tuple[str, list[str]], published: Path, tmp_path: Path
) -> None:
    address, _ = hub
    models = tmp_path / "models"
    # A folder in the place of a file: listed, but it cannot be read.
    (published / "tokenizer.json").unlink()
    (published / "tokenizer.json").mkdir()
    code, line = resolve("tiny/llama", models, HF_ENDPOINT=address)
    assert code == 2 and "the download failed" in line
    assert not (models / "tiny--llama").exists()
    (published / "tokenizer.json").rmdir()
    shutil.copy(TIED / "tokenizer.json", published)
    code, folder = resolve("tiny/llama", models, HF_ENDPOINT=address)
    assert code == 0
    assert (Path(folder) / "tokenizer.json").read_bytes() == (TIED / "tokenizer.json").read_bytes()
    assert not (models / "tiny--llama.partial").exists()


def test_what_cannot_be_had_is_one_line(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, _ = hub
    for model, environment, reason in (
        ("tiny/llama", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids to download it"),
        ("no/model", {}, "the hub has no such model either, or only for those with access"),
        ("my/gated", {}, "on the hub it is gated: ask for access on its page there"),
        ("tiny/llama", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the download failed: ConnectError"),
    ):
        code, line = resolve(model, tmp_path, **{"HF_ENDPOINT": address, **environment})
        assert code == 2
        assert line.startswith(f"model {model}: no such folder, and {reason}")


@pytest.mark.parametrize("damage", [
    lambda whole: whole[:-1],
    lambda whole: whole[:100],
    lambda whole: whole + b"x",
    lambda whole: b"",
    lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    lambda whole: (2).to_bytes(8, "little") + b"[]",
])  # fmt: skip
def test_weights_that_are_not_whole_are_named(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    shutil.copytree(TIED, tmp_path / "base")
    check_model(tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(InputError, match=r"model\.safetensors(: not a | is not as long)"):
        check_model(tmp_path / "base")

"""The command line of a batch, with an engine in place of a real one."""

import pytest

from finetune import cli, partner
from finetune.batching import work
from tests.finetune.batching.speaking import Engine


@pytest.fixture
def speak(model, tmp_path, monkeypatch):
    """Runs the command on the tiny model's folder, with the engine that is given in place of a real one."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, engine=None, status=0, path=model):
        engine = engine or Engine()
        decode = lambda ids: "".join(map(chr, ids))  # noqa: E731
        encode = lambda messages: "/".join(message.content for message in messages)  # noqa: E731
        monkeypatch.setattr(work, "open_partner", lambda path: partner.Partner(engine, encode, decode, 400))
        assert cli.main(["batch", str(path), *map(str, arguments)]) == status
        return engine

    return run

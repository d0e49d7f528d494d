"""A person asks the served endpoint now, or looks at what it would be asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.scenes.endpoint import Server
from tests.scenes.models import changed_model, save_talker, with_adapter
from tests.scenes.packs import drawn, feature, pack_of
from tests.scenes.served import Served, served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_talker(tmp_path_factory.mktemp("talker"), 5)


@pytest.fixture(scope="module")
def endpoint(model: Path) -> Iterator[tuple[Served, Server]]:
    with served(model) as both:
        yield both


@pytest.fixture
def config(
    model: Path, endpoint: tuple[Served, Server], configured: Callable[..., Path], tmp_path: Path
) -> Path:
    from monitor.score.pack import save_pack

    save_pack(pack_of(model, [feature("said", drawn(1))]), tmp_path / "pack")
    return configured(
        replay={"model": str(model), "device": "cpu", "dtype": "float32"},
        pack={"path": str(tmp_path / "pack")},
        server_canaries={"url": endpoint[1].url, "model": "tiny", "questions": 8},
    )


def test_asked_now_it_says_whether_the_server_is_the_copy(
    cli: Cli, config: Path, model: Path, endpoint: tuple[Served, Server], tmp_path: Path
) -> None:
    well = cli("canaries", "ask", "--json", config=config)
    assert well.code == 0, well.err
    found = json.loads(well.out)
    assert (found["questions"], found["beyond"], found["crossed"]) == (8, 0, False)
    assert len(found["answers"]) == 8
    endpoint[0].swap(changed_model(model, tmp_path / "adapter", with_adapter(0.3)))
    swapped = cli("canaries", "ask", config=config)
    assert swapped.code == 1
    assert "tiny is another model than the copy" in swapped.out
    endpoint[0].failing = 503, {}, b""
    away = cli("canaries", "ask", config=config)
    assert away.code == 2
    assert "not known: the served endpoint at 127.0.0.1 answers with HTTP 503" in away.out


def test_the_questions_can_be_looked_at(cli: Cli, config: Path) -> None:
    shown = cli("canaries", "choose", "--json", config=config)
    assert shown.code == 0, shown.err
    rows = json.loads(shown.out)
    assert len(rows) == 8
    assert sum(row["border"] for row in rows) == 4
    assert {"question", "first", "second", "margin", "tolerance", "answer"} <= set(rows[0])


def test_without_an_endpoint_it_names_the_setting(
    cli: Cli, model: Path, configured: Callable[..., Path]
) -> None:
    refused = cli("canaries", "ask", config=configured(replay={"model": str(model)}))
    assert refused.code == 2
    assert "server_canaries.url" in refused.err


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"url": "http://u:p@served/v1", "model": "m"}, "key_file or MONITOR_SERVER_KEY"),
        ({"url": "served:8000", "model": "m"}, "expected http:// or https:// and a host"),
        ({"url": "http://served/v1"}, "server_canaries.model"),
        ({"url": "http://served/v1", "model": "m", "key": "x"}, "server_canaries.key"),
    ],
)
def test_wrong_settings_are_named(
    cli: Cli, configured: Callable[..., Path], section: dict[str, str], said: str
) -> None:
    refused = cli("canaries", "ask", config=configured(server_canaries=section))
    assert refused.code == 2
    assert said in refused.err.replace("\n", " ")

"""Settings from words: kebab-case options, and one clear line for what is wrong or missing."""

from pathlib import Path

import pytest

from runtime.config import ServiceSettings, read_settings
from runtime.errors import InvalidArgument
from runtime.process import started


def test_words_become_settings() -> None:
    settings = read_settings(ServiceSettings, ["--identity-dir=here", "--metrics-port", "0", "--region", "europe"])
    assert (settings.identity_dir, settings.metrics_port, settings.region) == (Path("here"), 0, "europe")


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_REGION", "asia")
    assert read_settings(ServiceSettings, ["--identity-dir=here"]).region == "asia"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--identity-dir: is needed"),
        (["--identity-dir=x", "--port=70000"], "--port: "),
        (["--identity-dir=x", "--region=Nowhere Land"], "--region: "),
    ],
)
def test_what_is_wrong_is_named(words: list[str], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        read_settings(ServiceSettings, words)


def test_a_service_that_cannot_start_says_so_and_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    def start() -> int:
        read_settings(ServiceSettings, [])
        return 0

    assert started(start) == 2
    assert capsys.readouterr().err.startswith("penstock: --identity-dir: is needed")

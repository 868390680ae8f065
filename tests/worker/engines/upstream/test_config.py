"""What `upstream.toml` may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.engine import ModelRefused
from worker.engines.upstream.config import Patience, UpstreamConfig, read_config

LEAST = 'api = "openai"\nbase_url = "https://api.openai.com/v1/"\nmodel = "gpt-4o-mini"\n'


def config(folder: Path, text: str) -> UpstreamConfig:
    (folder / "upstream.toml").write_text(text)
    return read_config(folder)


def test_the_least_and_the_most_that_it_says(tmp_path: Path) -> None:
    assert config(tmp_path, LEAST) == UpstreamConfig("openai", "https://api.openai.com/v1", "gpt-4o-mini")
    most = config(
        tmp_path,
        LEAST
        + 'key = "mine"\norganisation = "org"\nmax_concurrency = 4\nmax_retries = 2\ncheck = true\ninclude_usage = false\n'
        + 'token_limit = "max_completion_tokens"\ndimensions = 256\n'
        + '[timeouts]\nconnect_s = 1\nfirst_token_s = 2.5\nbetween_tokens_s = 3\ntotal_s = 4\n[headers]\nX-Title = "a"\n',
    )
    assert most == UpstreamConfig(
        api="openai",
        base_url="https://api.openai.com/v1",
        model="gpt-4o-mini",
        key="mine",
        organisation="org",
        headers=(("X-Title", "a"),),
        patience=Patience(1, 2.5, 3, 4),
        max_concurrency=4,
        max_retries=2,
        check=True,
        include_usage=False,
        token_limit="max_completion_tokens",
        dimensions=256,
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("api", "is no TOML"),
        ('api = "openai"\nbase_url = "https://a"\n', "model is None"),
        (LEAST.replace("openai", "claude", 1), "api is 'claude'; openai or gemini"),
        (LEAST + "temperature = 1\n", "temperature is not a field; the fields are: always_stream, api, base_url"),
        (LEAST + 'key = "a"\n[timeouts]\nread_s = 1\n', r"timeouts\.read_s is not a field"),
        (LEAST + "[timeouts]\ntotal_s = 0\n", r"timeouts\.total_s is 0; seconds from"),
        (LEAST + "[timeouts]\ntotal_s = nan\n", "seconds from"),
        (LEAST + "timeouts = 3\n", "timeouts is 3; a table"),
        (LEAST + "max_concurrency = 0\n", "a whole number from 1 to 4096"),
        (LEAST + "max_retries = true\n", "a whole number from 0 to 10"),
        (LEAST + 'check = "yes"\n', "true or false"),
        (LEAST + 'organisation = "a\\nb"\n', "printable ASCII"),
        (LEAST + '[headers]\nAuthorization = "Bearer x"\n', r"headers\.Authorization is not set here"),
        (LEAST + '[headers]\nx-api-key = "x"\n', "it is a secret"),
        (LEAST + '[headers]\nHost = "b"\n', "the engine writes it"),
        (LEAST + '[headers]\n"a b" = "x"\n', "a header's name"),
        (LEAST + '[headers]\nx = "a\\r\\nb: c"\n', "printable ASCII"),
        (LEAST + "[headers]\n" + "".join(f'x-{n} = ""\n' for n in range(33)), "up to 32 headers"),
        (LEAST.replace("gpt-4o-mini", "../a?b"), "model is"),
        (LEAST.replace("gpt-4o-mini", "a/../b"), "model is"),
        ("x" * 70_000, "more than 65536 bytes"),
    ],
)
def test_what_it_may_not_say(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ModelRefused, match=sentence):
        config(tmp_path, text)


def test_a_folder_without_it(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"needs a file upstream\.toml"):
        read_config(tmp_path)

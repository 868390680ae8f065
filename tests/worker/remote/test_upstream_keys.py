"""Keys and where they may go: files that others can read, secrets that are not there, hosts that were not listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.remote.upstream_hosts import HostRefused, origin_of
from worker.remote.upstream_keys import KeysRefused, UpstreamAccess, read_keys

KEY = "sk-very-secret"
OPENAI = origin_of("https://api.openai.com/v1", "m")


def keys_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "keys.toml"
    file.write_text(text)
    file.chmod(mode)
    return file


def inline(folder: Path, hosts: str = '["api.openai.com"]') -> Path:
    return keys_file(folder, f'[openai]\nkey = "{KEY}"\nhosts = {hosts}\n')


def test_a_key_from_the_file_from_the_environment_and_from_a_file_of_its_own(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text(f"{KEY}-3\n")
    own.chmod(0o440)
    file = keys_file(
        tmp_path,
        f'[a]\nkey = "{KEY}-1"\nhosts = ["a.example"]\n'
        '[b]\nkey_env = "B_KEY"\nhosts = ["b.example"]\n'
        f'[c]\nkey_file = "{own}"\nhosts = ["c.example", "*.c.example"]\n',
    )
    secrets = read_keys(file, {"B_KEY": f"{KEY}-2"})
    assert [secrets[name].key for name in "abc"] == [f"{KEY}-1", f"{KEY}-2", f"{KEY}-3"]
    assert KEY not in repr(secrets)


@pytest.mark.parametrize("mode", [0o644, 0o606, 0o620, 0o604])
def test_a_file_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    file = inline(tmp_path)
    file.chmod(mode)
    with pytest.raises(KeysRefused, match="chmod 600"):
        read_keys(file, {})


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text(KEY)
    own.chmod(0o644)
    with pytest.raises(KeysRefused, match="own has mode 0644"):
        read_keys(keys_file(tmp_path, f'[a]\nkey_file = "{own}"\nhosts = ["a.example"]\n'), {})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("key = ", "is no TOML"),
        ('key = "sk-very-secret"', "outside of a table"),
        ('[a]\nkey = "sk-very-secret"', "needs hosts"),
        ('[a]\nkey = "sk-very-secret"\nhosts = []', "needs hosts"),
        ('[a]\nkey = "sk-very-secret"\nhosts = [1]', "needs hosts"),
        ('[a]\nkey = "sk-very-secret"\nhosts = ["*"]', "lists the host"),
        ('[a]\nhosts = ["a.example"]', "needs one of"),
        ('[a]\nkey = "sk-very-secret"\nkey_env = "A"\nhosts = ["a.example"]', "needs one of"),
        ('[a]\nkey = "sk-very-secret\\n"\nhosts = ["a.example"]', "characters"),
        ('[a]\nkey = ""\nhosts = ["a.example"]', "is empty"),
        ('[a]\nkey_env = "A"\nhosts = ["a.example"]', "'A', which is not set"),
        ('[a]\nkey_file = "/nowhere/at/all"\nhosts = ["a.example"]', "cannot be read"),
        ('[a]\nkey = "sk-very-secret"\nhosts = ["a.example"]\nhost = "b"', "'host'"),
    ],
)
def test_a_wrong_file_is_refused_without_telling_a_key(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises((KeysRefused, HostRefused), match=sentence) as refused:
        read_keys(keys_file(tmp_path, text), {})
    assert KEY not in refused.value.message


def test_a_key_goes_to_its_own_hosts_alone(tmp_path: Path) -> None:
    access = UpstreamAccess(inline(tmp_path), hosts=("*.example.com",))
    secret = access.admit(OPENAI, "openai", "model 'm'")
    assert secret is not None
    assert secret.key == KEY
    for url in ("https://a.example.com", "http://127.0.0.1:80", "https://localhost", "https://api.openai.com.evil.example"):
        with pytest.raises(HostRefused, match="not among the hosts of key 'openai'"):
            access.admit(origin_of(url, "m"), "openai", "model 'm'")


def test_a_key_that_nobody_has(tmp_path: Path) -> None:
    with pytest.raises(KeysRefused, match=r"'other'; the keys of this worker \(upstream_keys\) are: openai"):
        UpstreamAccess(inline(tmp_path)).admit(OPENAI, "other", "model 'm'")
    with pytest.raises(KeysRefused, match="are: none"):
        UpstreamAccess().admit(OPENAI, "other", "model 'm'")


def test_without_settings_only_this_machine_is_called() -> None:
    assert UpstreamAccess().admit(origin_of("http://127.0.0.1:8000/v1", "m"), "", "model 'm'") is None
    for url in ("https://api.openai.com", "http://10.0.0.1", "https://intranet"):
        with pytest.raises(HostRefused, match="an operator has to list it"):
            UpstreamAccess().admit(origin_of(url, "m"), "", "model 'm'")


def test_what_is_listed_is_called_without_a_key(tmp_path: Path) -> None:
    assert UpstreamAccess(hosts=("10.0.0.0/8",)).admit(origin_of("http://10.0.0.1:8000", "m"), "", "m") is None
    assert UpstreamAccess(inline(tmp_path)).admit(OPENAI, "", "m") is None


def test_plain_http_leaves_the_network_only_where_it_is_listed_so(tmp_path: Path) -> None:
    plain = origin_of("http://gpu-box:8000/v1", "m")
    with pytest.raises(HostRefused, match="without TLS"):
        UpstreamAccess(hosts=("gpu-box",)).admit(plain, "", "m")
    assert UpstreamAccess(hosts=("http://gpu-box:8000",)).admit(plain, "", "m") is None
    with pytest.raises(HostRefused, match="without TLS"):
        UpstreamAccess(inline(tmp_path)).admit(origin_of("http://api.openai.com/v1", "m"), "openai", "m")
    assert UpstreamAccess(inline(tmp_path, '["http://gpu-box"]')).admit(plain, "openai", "m") is not None

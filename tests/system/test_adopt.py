"""`trimtab init --from` on tricky configurations: a directory each in tests/data/adopt.

`said.txt` is what it prints and `trimtab.toml` what it writes, both read through by a person.
"""

import shutil
from pathlib import Path

import pytest

from trimtab import config
from trimtab.cli import main

CASES = Path(__file__).parents[1] / "data" / "adopt"
ADDED = ("said.txt", "trimtab.toml")


@pytest.mark.parametrize("case", sorted(p.name for p in CASES.iterdir()))
def test_what_is_understood_is_what_was_reviewed(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Upstreams, servers, locations and notes are those of the reviewed files, the TOML file loads,
    and nothing that was there is changed."""
    directory = tmp_path / "etc"
    shutil.copytree(CASES / case, directory, ignore=shutil.ignore_patterns(*ADDED))
    before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    output = tmp_path / "out" / "trimtab.toml"
    assert main(["init", "--from", str(directory / "nginx.conf"), "--output", str(output)]) == 0
    said = capsys.readouterr().out.replace(str(tmp_path), "")
    written = output.read_text().replace(str(tmp_path), "")
    assert said == (CASES / case / "said.txt").read_text()
    assert written == (CASES / case / "trimtab.toml").read_text()
    assert config.load(output).upstreams
    assert {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()} == before


def test_values_without_end_are_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Variables that would become millions of texts are told as not known, at once."""
    values = " ".join(f"{n} v{n};" for n in range(100))
    maps = "".join(f"map $x $v{n} {{ {values} }}\n" for n in range(5))
    (tmp_path / "nginx.conf").write_text(
        f"events {{ }} http {{ {maps} upstream a {{ server 10.0.0.1:80; }} server {{"
        "location / { proxy_pass http://$v0$v1$v2$v3$v4; }"
        "location /a { proxy_pass http://a; } } }"
    )
    output = tmp_path / "trimtab.toml"
    assert main(["init", "--from", str(tmp_path / "nginx.conf"), "--output", str(output)]) == 0
    assert "$v0$v1$v2$v3$v4: where it goes is only known" in capsys.readouterr().out


def test_blocks_without_end_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of nothing but opening braces is one sentence, not a traceback."""
    (tmp_path / "nginx.conf").write_text("http " + "{ a " * 5000 + "}" * 5000)
    output = tmp_path / "trimtab.toml"
    assert main(["init", "--from", str(tmp_path / "nginx.conf"), "--output", str(output)]) == 2
    assert "nginx.conf" in capsys.readouterr().err
    assert not output.exists()

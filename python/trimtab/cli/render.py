"""`trimtab render`: write the nginx configuration, or systemd units, from the TOML file."""

import argparse
import contextlib
import difflib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab import bearer, config
from trimtab.actuators import (
    nginx_binary,
    nginx_conf,
    nginx_process,
    systemd_unit,
    templates,
    upstreams_conf,
)
from trimtab.actuators.nginx_service import NginxService
from trimtab.config import Config
from trimtab.errors import ConfigError, TrimtabError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--config", default="trimtab.toml", metavar="FILE", help="the TOML file (%(default)s)"
    )
    parser.add_argument(
        "--output",
        default="var/render",
        metavar="DIR",
        type=Path,
        help="where to write; nginx's prefix too (%(default)s)",
    )
    parser.add_argument(
        "--mode", choices=("lua", "stock"), help="instead of the mode in the configuration"
    )
    parser.add_argument(
        "--only",
        choices=("upstreams",),
        help="stock mode: only the file of upstreams, for an existing nginx to include",
    )
    parser.add_argument(
        "--method",
        choices=("least_conn", "round_robin"),
        help="stock mode: instead of the method in [stock]; round_robin has the square-root rule",
    )
    parser.add_argument(
        "--balancer",
        choices=nginx_conf.BALANCERS,
        default="trimtab",
        help="who picks servers; others than trimtab are for comparison (%(default)s)",
    )
    parser.add_argument(
        "--layout",
        choices=nginx_conf.LAYOUTS,
        default="per_class",
        help="upstream groups: one for each class, or one for all (%(default)s)",
    )
    parser.add_argument("--access-log", action="store_true", help="write logs/access.log")
    parser.add_argument(
        "--vts-module",
        type=Path,
        metavar="FILE",
        help="stock mode: the .so file of nginx-module-vts, if it is not where nginx has its own",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="run `nginx -t` first and write nothing that nginx does not accept",
    )
    parser.add_argument(
        "--diff",
        action="store_true",
        help="show what would change in the output directory, and write nothing",
    )
    parser.add_argument(
        "--unit",
        action="store_true",
        help="write trimtab.service, the systemd unit of the policy server, and nothing else; "
        'with reload = "external" in stock mode also the units that reload nginx',
    )


def _executable() -> str:
    """The absolute path of the `trimtab` that runs."""
    beside = Path(sys.executable).with_name("trimtab")
    found = str(beside) if beside.is_file() else shutil.which("trimtab")
    if found is None:
        raise TrimtabError(
            f"there is no `trimtab` beside {sys.executable} nor on PATH for the unit to start: "
            "install it (pip install .)"
        )
    return str(Path(found).absolute())


def _write(files: Mapping[str, str], directory: Path, *, diff: bool = False) -> None:
    if diff:
        _show_diff(files, directory)
        return
    changed = nginx_conf.write(files, directory)
    for name in files:
        print(f"{'wrote' if name in changed else 'unchanged:'} {directory / name}")


def _show_diff(files: Mapping[str, str], directory: Path) -> None:
    for name, text in files.items():
        path = directory / name
        if name == nginx_conf.TOKEN_FILE:
            continue  # not for a terminal
        try:
            before = path.read_text(encoding="utf-8") if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise TrimtabError(f"{path} cannot be read: {error}") from None
        lines = difflib.unified_diff(
            before.splitlines(keepends=True),
            text.splitlines(keepends=True),
            str(path) if before else "/dev/null",
            f"{path} (rendered)",
        )
        sys.stdout.writelines(lines)


def _unit(checked: Config, directory: Path, *, diff: bool) -> None:
    executable, source = _executable(), Path(checked.path).absolute()
    text = systemd_unit.render_unit(checked, executable=executable, config_path=source)
    files = {"trimtab.service": text}
    external = checked.nginx.mode == "stock" and checked.stock.reload == "external"
    if external:
        files |= systemd_unit.render_reload_units(checked)
    _write(files, directory, diff=diff)
    if diff:
        return
    # A user that systemd makes up has no more rights than nobody.
    for path in (Path(executable), source):
        if not nginx_binary.reachable(path.parent, uid=65534, gids=frozenset({65534})):
            print(
                f"trimtab: the service's own user cannot reach {path}; put it where everybody "
                "can read, as /opt/trimtab or /etc/trimtab",
                file=sys.stderr,
            )
    if checked.nginx.mode == "stock" and not external:
        print(
            "trimtab: the service's own user may not reload nginx; set in [stock]: "
            'reload = "external", and include_file to one below the state directory',
            file=sys.stderr,
        )
    units = " ".join(shlex.quote(str(directory / name)) for name in files)
    more = " trimtab-nginx.path" if external else ""
    print(f"next: cp {units} /etc/systemd/system/ && systemctl enable --now trimtab{more}")


def _upstreams(checked: Config, arguments: argparse.Namespace, directory: Path) -> None:
    """Only the file of upstreams."""
    text, _ = upstreams_conf.render_upstreams(checked)
    if arguments.check:
        alone, _ = upstreams_conf.render_upstreams(checked, status=False)
        NginxService(checked).check_alone(alone)
    name = checked.stock.include_file.name
    _write({name: text}, directory, diff=arguments.diff)
    if not arguments.diff:
        include = templates.include_line(directory / name)
        print(f"next: put into the http block of {checked.stock.main_file}:  {include}")


def _check(
    checked: Config,
    directory: Path,
    installation: nginx_binary.Installation,
    options: dict[str, Any],
) -> None:
    """`nginx -t` on the same configuration in a directory within, which goes away again."""
    with _within(directory) as name:
        beside = Path(name)
        nginx_conf.write(nginx_conf.render(checked, beside, **options), beside)
        try:
            nginx_process.check(installation, beside)
        except TrimtabError as error:
            text = str(error).replace(name, str(directory))
            raise type(error)(f"{text}\n  nothing was written") from None


@contextlib.contextmanager
def _within(directory: Path) -> Iterator[str]:
    """A directory in `directory` for a while; what had to be made for it goes away too."""
    absent = [d for d in (directory, *directory.parents) if not d.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=".check-", dir=directory)
    except OSError as error:
        raise TrimtabError(
            f"cannot write {directory}: {error.strerror}; nothing was written"
        ) from None
    try:
        with made as name:
            yield name
    finally:
        for parent in absent:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _configuration(arguments: argparse.Namespace) -> Config:
    """The file with what the arguments say instead. Raises ConfigError."""
    checked = config.load(arguments.config)
    mode = arguments.mode or checked.nginx.mode
    for name in ("vts_module", "only", "method"):
        if getattr(arguments, name) and mode != "stock":
            raise ConfigError(f"--{name.replace('_', '-')} is for stock mode: add --mode stock")
    method = arguments.method or checked.stock.method
    return replace(
        checked,
        nginx=replace(checked.nginx, mode=mode),
        stock=replace(checked.stock, method=method),
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the files; ConfigError, DependencyError and TrimtabError end the command."""
    checked = _configuration(arguments)
    directory = arguments.output.absolute()
    if arguments.unit:
        _unit(checked, directory, diff=arguments.diff)
        return 0
    if arguments.only:
        _upstreams(checked, arguments, directory)
        return 0
    mode = checked.nginx.mode
    installation = nginx_binary.find(checked.nginx.binary)
    vts_module = arguments.vts_module.absolute() if arguments.vts_module else None
    machine = nginx_binary.machine(installation, directory, mode, vts_module=vts_module)
    if machine.user and machine.user[0] == "root":
        print(f"trimtab: {nginx_binary.ROOT_WORKERS}", file=sys.stderr)
    options: dict[str, Any] = {
        "machine": machine,
        "mode": mode,
        "balancer": arguments.balancer,
        "layout": arguments.layout,
        "access_log": arguments.access_log,
        "balancer_token": bearer.balancer_token(checked.policy) if mode == "lua" else None,
    }
    if arguments.check:
        _check(checked, directory, installation, options)
    files = nginx_conf.render(checked, directory, **options)
    _write(files, directory, diff=arguments.diff)
    if arguments.diff:
        return 0
    conf = shlex.quote(str(directory / "nginx.conf"))
    command = f"{installation.path} -p {shlex.quote(str(directory))}/ -c {conf}"
    if arguments.check:
        print(f"{installation.name} accepts it")
    else:
        print(f"check it: {command} -t")
    serve = f"trimtab serve --config {shlex.quote(arguments.config)}"
    print(f"run it: {command}\n  with the policy server beside it: {serve}")
    if mode == "stock" and checked.stock.include_file.absolute() != directory / "upstreams.conf":
        print(
            "trimtab: for `trimtab serve` to change these files set in [stock]: "
            f'include_file = "{directory}/upstreams.conf", main_file = "{directory}/nginx.conf", '
            f'pid_file = "{directory}/nginx.pid"',
            file=sys.stderr,
        )
    return 0

"""`trimtab render`: write the nginx configuration, or the systemd unit, from the TOML file."""

import argparse
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from trimtab import config
from trimtab.actuators import nginx_binary, nginx_conf, nginx_process, systemd_unit
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
        "--unit",
        action="store_true",
        help="write trimtab.service, the systemd unit of the policy server, and nothing else",
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


def _write(files: dict[str, str], directory: Path) -> None:
    changed = nginx_conf.write(files, directory)
    for name in files:
        print(f"{'wrote' if name in changed else 'unchanged:'} {directory / name}")


def _unit(checked: Config, directory: Path) -> None:
    executable, source = _executable(), Path(checked.path).absolute()
    text = systemd_unit.render_unit(checked, executable=executable, config_path=source)
    _write({"trimtab.service": text}, directory)
    # A user that systemd makes up has no more rights than nobody.
    for path in (Path(executable), source):
        if not nginx_binary.reachable(path.parent, uid=65534, gids=frozenset({65534})):
            print(
                f"trimtab: the service's own user cannot reach {path}; put it where everybody "
                "can read, as /opt/trimtab or /etc/trimtab",
                file=sys.stderr,
            )
    unit = shlex.quote(str(directory / "trimtab.service"))
    print(f"next: cp {unit} /etc/systemd/system/ && systemctl enable --now trimtab")


def _check(
    checked: Config,
    directory: Path,
    installation: nginx_binary.Installation,
    options: dict[str, Any],
) -> None:
    """`nginx -t` on the same configuration in a directory beside, which goes away again."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".check-", dir=directory) as name:
        beside = Path(name)
        nginx_conf.write(nginx_conf.render(checked, beside, **options), beside)
        try:
            nginx_process.check(installation, beside)
        except TrimtabError as error:
            text = str(error).replace(name, str(directory))
            raise type(error)(f"{text}\n  nothing was written") from None


def run(arguments: argparse.Namespace) -> int:
    """Write the files; ConfigError, DependencyError and TrimtabError end the command."""
    checked = config.load(arguments.config)
    directory = arguments.output.absolute()
    if arguments.unit:
        _unit(checked, directory)
        return 0
    mode = arguments.mode or checked.nginx.mode
    if arguments.vts_module and mode != "stock":
        raise ConfigError("--vts-module is for stock mode: add --mode stock")
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
    }
    if arguments.check:
        _check(checked, directory, installation, options)
    _write(dict(nginx_conf.render(checked, directory, **options)), directory)
    conf = shlex.quote(str(directory / "nginx.conf"))
    command = f"{installation.path} -p {shlex.quote(str(directory))}/ -c {conf}"
    if arguments.check:
        print(f"{installation.name} accepts it")
    else:
        print(f"check it: {command} -t")
    serve = f"trimtab serve --config {shlex.quote(arguments.config)}"
    print(f"run it: {command}\n  with the policy server beside it: {serve}")
    return 0

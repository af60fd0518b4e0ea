"""systemd units from templates: of the policy server, and of what reloads nginx for it.

Installing them is the operator's.
"""

from pathlib import Path

from trimtab import __version__
from trimtab.actuators.templates import environment
from trimtab.config import Config
from trimtab.errors import ConfigError

__all__ = ["render_reload_units", "render_unit"]


def render_unit(config: Config, *, executable: str, config_path: Path) -> str:
    """The systemd unit of the policy server.

    Args:
        config: its configuration; a relative state directory will lie in /var/lib/trimtab.
        executable: absolute path of `trimtab`.
        config_path: absolute path of the configuration file.

    Raises:
        ConfigError: the state directory is where a user of its own cannot write.
    """
    state = "trimtab"
    directory = config.policy.state_directory
    if directory.is_absolute():
        if directory.parts[:3] != ("/", "var", "lib") or len(directory.parts) < 4:
            raise ConfigError(
                f"{config.path}: state_directory in [policy] is {str(directory)!r}; the service "
                "has a user of its own, which can write below /var/lib only: set "
                'state_directory = "/var/lib/trimtab"'
            )
        state = directory.parts[3]
    homes = ("home", "root", "run/user")
    at_home = any(
        Path(path).is_relative_to(f"/{home}")
        for path in (executable, config_path)
        for home in homes
    )
    template = environment().get_template("trimtab.service.j2")
    return template.render(
        version=__version__,
        executable=executable,
        config_path=str(config_path),
        state=state,
        protect_home="read-only" if at_home else "yes",
    )


def render_reload_units(config: Config) -> dict[str, str]:
    """The units that reload nginx when the upstream file changes, by file name: for stock mode
    with reload = "external", where the policy server has no right to.

    Raises ConfigError for a path that no unit can hold.
    """
    values = {
        "version": __version__,
        "source": config.path,
        "include_file": str(config.stock.include_file.absolute()),
    }
    names = ("trimtab-nginx.path", "trimtab-nginx.service")
    return {name: environment().get_template(f"{name}.j2").render(values) for name in names}

"""Which service a client speaks to, and with which key: arguments, then the environment, then a profile.

    # ~/.config/sleddog/config.toml, readable by its owner only where it holds a key
    profile = "team"                     # the one to use where none is named

    [profiles.team]
    url = "https://sleddog.example"
    api_key_file = "~/.config/sleddog/team-key"     # or api_key

A profile's key is for its own address alone: with another one, by `--url` or `SLEDDOG_URL`, it is not sent.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from service.errors import InvalidSettingsError
from service.spec.base import SpecModel, field_errors

DEFAULT_URL = "http://127.0.0.1:8700"


class Profile(SpecModel):
    """A service, and how to reach it."""

    url: str
    """Its address."""
    api_key: str | None = None
    """The key; better in a file of its own."""
    api_key_file: str | None = None
    """File that holds it."""

    def key(self) -> str | None:
        """The key, if the profile has one."""
        return self.api_key or (_read_key(self.api_key_file) if self.api_key_file else None)


class ConfigFile(SpecModel):
    """What `config.toml` may say."""

    profile: str | None = None
    """The profile to use where none is named."""
    profiles: dict[str, Profile] = Field(default={})
    """By name."""


@dataclass(frozen=True)
class Connection:
    """Where to, and with which key, if one is known."""

    url: str
    api_key: str | None


def find_connection(url: str | None, api_key: str | None, profile: str | None = None) -> Connection:
    """What to connect to.

    Args:
        url: of the service; by default `SLEDDOG_URL`, else the profile's, else this machine.
        api_key: by default `SLEDDOG_API_KEY`, else the content of the file `SLEDDOG_API_KEY_FILE`, else the profile's.
        profile: by default `SLEDDOG_PROFILE`, else the one that the config file names.

    Raises:
        InvalidSettingsError: there is no such profile, or the config file is not as it should be.
    """
    chosen = find_profile(profile)
    found_url = url or os.environ.get("SLEDDOG_URL") or (chosen.url if chosen else DEFAULT_URL)
    key = api_key or os.environ.get("SLEDDOG_API_KEY")
    if key is None and (file := os.environ.get("SLEDDOG_API_KEY_FILE")):
        key = _read_key(file)
    if key is None and chosen is not None and found_url.rstrip("/") == chosen.url.rstrip("/"):
        key = chosen.key()
    return Connection(found_url, key)


def config_path() -> Path:
    """Where the config file is looked for."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "sleddog" / "config.toml"


def find_profile(name: str | None = None) -> Profile | None:
    """The profile of this name, or the one to use by default; None when none is named anywhere.

    Raises:
        InvalidSettingsError: there is none of this name, or the config file is not as it should be.
    """
    name = name or os.environ.get("SLEDDOG_PROFILE")
    path = config_path()
    config = _read_config(path) if path.exists() else ConfigFile()
    name = name or config.profile
    if name is None:
        return None
    if name not in config.profiles:
        known = ", ".join(sorted(config.profiles)) or "none"
        raise InvalidSettingsError(f"{path} has no profile {name!r}; it has {known}")
    return config.profiles[name]


def _read_config(path: Path) -> ConfigFile:
    try:
        document = tomllib.loads(path.read_text())
        config = ConfigFile.model_validate(document)
    except tomllib.TOMLDecodeError as error:
        raise InvalidSettingsError(f"{path} is no TOML: {error}") from None
    except ValidationError as error:
        faults = "; ".join(f"{fault.field}: {fault.message}" for fault in field_errors(error.errors(), document))
        raise InvalidSettingsError(f"{path}: {faults}") from None
    if any(profile.api_key for profile in config.profiles.values()) and path.stat().st_mode & 0o077:
        raise InvalidSettingsError(f"{path} holds a key and can be read by others; run `chmod 600 {path}`")
    return config


def _read_key(path: str) -> str:
    return Path(path).expanduser().read_text().strip()

"""Device profiles by name: those that ship, a user's own files, and the machine this runs on, measured.

What a profile holds is `export.device.profile`; measuring is `export.device.probing`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from export.artifacts import sha256_of_json, write_atomically
from export.device.profile import DeviceProfile
from export.errors import RecipeError
from export.hardware import environment
from export.plugins import nearest
from finetune.mistakes import mistakes
from finetune.shipped import folder
from finetune.yaml_text import read_yaml

THIS_MACHINE = "this_machine"


def shipped_devices() -> dict[str, Path]:
    """The files of the shipped profiles by their names."""
    return {path.stem: path for path in sorted(folder("devices").glob("*.yaml"))}


def find_device(name_or_path: str, say: Callable[[str], None]) -> DeviceProfile:
    """A shipped profile by its name, one's own by its path, or `this_machine`, which is probed now.

    Raises RecipeError for a name that there is none of, with the nearest, and for a file with every mistake in it.
    """
    if name_or_path == THIS_MACHINE:
        from export.device.probing import probe

        return probe(say)
    if is_profile_path(name_or_path):
        return load_device(Path(name_or_path).expanduser())
    known = shipped_devices()
    if name_or_path not in known:
        raise RecipeError(
            f"no device is called {name_or_path!r}. {nearest(name_or_path, (*known, THIS_MACHINE))} A profile of your "
            "own is given as a path, such as ./my_board.yaml."
        )
    return load_device(known[name_or_path])


def is_profile_path(name_or_path: str) -> bool:
    """Whether a device is given by its profile's path, and not by its name."""
    return name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path


def device_identity(name_or_path: str) -> str:
    """What a device's figures stand on: its profile's content, or the machine that is measured.

    Raises RecipeError as `find_device` does.
    """
    if name_or_path == THIS_MACHINE:
        here = environment()
        return f"{here.processor}, {here.cores} cores, {here.memory_bytes:,} bytes"
    return sha256_of_json(find_device(name_or_path, lambda line: None).model_dump(mode="json"))


def load_device(path: Path) -> DeviceProfile:
    """The profile in a YAML file. Raises RecipeError with every mistake at once."""
    content = read_yaml(path)
    try:
        return DeviceProfile.model_validate(content)
    except ValidationError as error:
        problems = "".join(f"\n  {line}" for line in mistakes(DeviceProfile, error))
        raise RecipeError(f"the device profile {path} has mistakes:{problems}") from None


def device_text(device: DeviceProfile) -> str:
    """A measured profile as YAML, which can be read, edited and given to `fit`."""
    import yaml

    content: dict[str, Any] = device.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(_rounded(content), sort_keys=False, allow_unicode=True, width=120)
    return f"# Measured on the machine itself by `fieldtune device probe`.\n{text}"


def write_device(device: DeviceProfile, path: Path) -> None:
    """Writes `device_text` as a file. Raises OSError where that cannot be written."""
    write_atomically(path, device_text(device))


def _rounded(value: Any) -> Any:
    """Whole numbers where a figure is large: nobody measures a fraction of a byte."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value) if isinstance(value, float) and value >= 1000 else value


def device_lines() -> list[str]:
    """A line for each shipped profile: its name, memory, and bytes per second."""
    profiles = {name: load_device(path) for name, path in shipped_devices().items()}
    return [
        f"{name:27} {device.title:30} {device.usable_memory_bytes.value / 1e9:5.1f} of "
        f"{device.memory_bytes.value / 1e9:5.1f} GB usable, {device.decode_bytes_per_second.value / 1e9:6.1f} GB/s"
        for name, device in profiles.items()
    ]

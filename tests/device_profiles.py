"""Device profiles that no one sells: only their memory and speed matter to what is tested with them."""

from typing import Any

from export.device.profile import DeviceProfile


def a_device(megabytes: float, rate: float = 10**9, **more: Any) -> DeviceProfile:
    """A board on which so many megabytes can be used and weights are read at `rate` bytes a second."""

    def said(value: float) -> dict[str, object]:
        return {"value": value, "source": "a test's"}

    return DeviceProfile.model_validate(
        {
            "title": "a small board",
            "processor": "one core",
            "formats": ["gguf"],
            "memory_bytes": said(10**10),
            "usable_memory_bytes": said(megabytes * 1e6),
            "bandwidth_bytes_per_second": said(10**12),
            "decode_bytes_per_second": said(rate),
            "prefill_flops_per_second": said(10**10),
            **more,
        }
    )

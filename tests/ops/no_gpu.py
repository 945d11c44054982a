"""As much of a GPU as triton asks for before a launch, where there is none."""

from __future__ import annotations

from triton.backends.compiler import GPUTarget


class Driver:
    """An H100 or H200. Nothing can be loaded or launched."""

    class utils:
        pass

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0
